"""The mma.sync GEMM family on experts, on every architecture: tiles of rows that a block finds on the device.

The computation is in :mod:`.gemm_mma_grouped_compute`, its schedule that of the family without experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, lru_cache

from tvm import s_tir
from tvm.target import Target

from nvfp4_tvm.arch import Arch
from nvfp4_tvm.schedules.base import KernelRule, MatmulProblem, MRange
from nvfp4_tvm.schedules.gemm_mma_choice import Candidate, fitting, launch_time, plan, usual_sms
from nvfp4_tvm.schedules.gemm_mma_config import MmaConfig
from nvfp4_tvm.schedules.gemm_mma_grouped_compute import grouped_gemm_mma
from nvfp4_tvm.schedules.gemm_mma_schedule import schedule_steps
from nvfp4_tvm.schedules.gemv_grouped import max_rows
from nvfp4_tvm.schedules.grouped import GroupedProblem
from nvfp4_tvm.schedules.grouped_tiles import expected_tiles
from nvfp4_tvm.schedules.kernel import CudaKernel, Launch

#: Rows an expert has on average where configurations may change, and those that stand for all beyond the last.
ROWS = (48, 64, 96, 128, 256)
LARGE_ROWS = (512, 1024)
#: Widest block that may hang over the last row of W: of wider ones ptxas then keeps some registers in memory.
MAX_HANGING = 128
#: See :data:`.gemm_mma_choice.WORTH_A_KERNEL`: routing blurs what divides the work evenly, and few kernels do.
WORTH_A_KERNEL = 1.08


class GroupedGemm(KernelRule):
    """16-bit activations, rows sorted by expert.

    Parameters
    ----------
    problem : GroupedProblem
        Whose experts it will be asked for.
    config : MmaConfig, optional
        Instead of the one that is predicted to be the fastest.
    """

    name = "gemm_mma_grouped"

    def __init__(self, problem: GroupedProblem, config: MmaConfig | None = None) -> None:
        self.experts, self.config = problem.experts, config

    def ranges(self, N: int, K: int, arch: Arch) -> Sequence[MRange]:
        """Ranges of M with one configuration each, for the dispatch."""
        if self.config is not None:
            return (MRange(),)
        return tuple(part for part, _ in _plan(N, K, self.experts, arch))

    def apply(self, problem: MatmulProblem, target: Target) -> CudaKernel | None:
        """See `KernelRule.apply`."""
        if not isinstance(problem, GroupedProblem) or problem.selected:
            return self.refuse(problem, "rows are not sorted by expert")
        arch = self.arch_of(problem, target)
        if arch is None:
            return None
        config = self.config or choose_config(problem, arch)
        if why := config.exceeds(arch):
            return self.refuse(problem, why)
        # Ranges share configurations, hence kernels
        return kernel(replace(problem, M=MRange(), dynamic=True), config)


@lru_cache(maxsize=32)
def kernel(problem: GroupedProblem, config: MmaConfig) -> CudaKernel:
    """Return the kernel of one configuration."""
    schedule = schedule_steps(s_tir.Schedule(grouped_gemm_mma(problem, config)), problem, config)
    arguments = (*problem.operands(1), "out")
    return CudaKernel(f"{GroupedGemm.name}_{config.name}", (Launch(schedule.mod["main"], arguments, "mma"),))


def choose_config(problem: GroupedProblem, arch: Arch) -> MmaConfig:
    """Return the tiles for a range of M; of several, those of its largest M."""
    chosen = _plan(problem.N, problem.K, problem.experts, arch)
    high = problem.M.high
    return next((config for part, config in chosen if high is not None and high in part), chosen[-1][1])


@cache
def _plan(N: int, K: int, experts: int, arch: Arch) -> tuple[tuple[MRange, MmaConfig], ...]:
    sms = usual_sms(arch)
    first = max_rows(experts) + 1
    highs = [experts * rows for rows in ROWS if experts * rows >= first]
    bounds: list[tuple[MRange, tuple[int, ...]]] = [
        (MRange(low, high), (high,))
        for low, high in zip([first, *(high + 1 for high in highs)], highs, strict=False)
    ]
    bounds.append((MRange(highs[-1] + 1), tuple(experts * rows for rows in LARGE_ROWS)))

    def time(candidate: Candidate, M: int) -> float:
        tiles = expected_tiles(experts, M, candidate.config.block_m)
        blocks = tiles * -(-N // candidate.config.block_n)
        # How full the last wave is depends on the routing: half, on average
        waves = 1.0 if blocks <= sms else blocks / sms + 0.5
        return launch_time(candidate, K, waves, blocks <= sms)

    usable = [
        candidate
        for candidate in fitting(arch)
        if candidate.config.block_n <= MAX_HANGING or N % candidate.config.block_n == 0
    ]
    return plan(bounds, lambda part: usable, time, WORTH_A_KERNEL)
