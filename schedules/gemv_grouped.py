"""The GEMV family on experts: few rows for each, or the experts that one token is routed to."""

from __future__ import annotations

from dataclasses import replace

from tvm.target import Target

from nvfp4_tvm.arch import Arch
from nvfp4_tvm.schedules.base import KernelRule, MatmulProblem, MRange
from nvfp4_tvm.schedules.gemv import MAX_M, candidates
from nvfp4_tvm.schedules.gemv_kernel import GemvConfig, gemv
from nvfp4_tvm.schedules.grouped import GroupedProblem
from nvfp4_tvm.schedules.grouped_tiles import expected_tiles, rows_for
from nvfp4_tvm.schedules.intrin.mma_sync import TOKENS
from nvfp4_tvm.schedules.kernel import CudaKernel, Launch

#: Eights of rows of a tile that there are kernels for; three would be a kernel more for little.
EIGHTS = (1, 2, 4)
#: Most blocks along the grid's second axis (CUDA C++ Programming Guide, "Technical Specifications").
MAX_TILES = 65535
#: Pieces of weights times eights of rows that a turn of the main loop may hold: experts need several kernels, and
#: what is longer takes longer to compile, and ptxas may keep some of its registers in memory.
_PIECES_PER_TURN = 16


def max_rows(experts: int) -> int:
    """Most rows the family takes: what four eights of an expert's rows usually hold."""
    return rows_for(experts, MAX_M)


class GroupedGemv(KernelRule):
    """Few rows of bfloat16 or float16 activations for each expert.

    Parameters
    ----------
    problem : GroupedProblem
        Whose experts it will be asked for, in which form.
    config : GemvConfig, optional
        Use this configuration for every M instead of choosing one; tests pass it.
    """

    name = "gemv_grouped"

    def __init__(self, problem: GroupedProblem, config: GemvConfig | None = None) -> None:
        self.experts, self.selected, self.config = problem.experts, problem.selected, config

    def ranges(self, N: int, K: int, arch: Arch) -> list[MRange]:
        """Return the ranges of M that have one configuration each, in order."""
        if self.selected:
            return [MRange()]
        # Up to eight rows the grid is much smaller than beyond
        highs = sorted({TOKENS, *(rows_for(self.experts, eights * TOKENS) for eights in EIGHTS)})
        return [MRange(low + 1, high) for low, high in zip([0, *highs], highs, strict=False)]

    def apply(self, problem: MatmulProblem, target: Target) -> CudaKernel | None:
        """Return the kernel, or None for more rows, other activations or another target."""
        if not isinstance(problem, GroupedProblem):
            return self.refuse(problem, "there are no experts")
        arch = self.arch_of(problem, target)
        if arch is None:
            return None
        high = problem.M.high
        if problem.selected:
            # Every row is a tile
            NB, tiles = 1, high or problem.experts
        elif high is None or high > max_rows(problem.experts):
            return self.refuse(problem, f"M is {problem.M}, expected at most {max_rows(problem.experts)}")
        else:
            NB = next(n for n in EIGHTS if high <= max(TOKENS, rows_for(problem.experts, n * TOKENS)))
            tiles = max(1, round(expected_tiles(problem.experts, high, NB * TOKENS)))
        if tiles > MAX_TILES:
            return self.refuse(problem, f"M is {problem.M}, expected at most {MAX_TILES} experts of a token")
        config = self.config or choose(problem, tiles, NB, arch)
        function, arguments = gemv(problem, NB, config)
        return CudaKernel(f"{self.name}_m{NB * TOKENS}_{config}", (Launch(function, arguments, "tirx"),))


#: Most warps of a block: of more, ptxas keeps some registers in memory, and experts make enough blocks.
_MAX_WARPS = 16


def choose(problem: GroupedProblem, tiles: int, NB: int, arch: Arch) -> GemvConfig:
    """Choose a configuration as for a weight that has the rows of all tiles' weights."""
    scored = candidates(problem.N * tiles, problem.K, NB, arch)
    _, best = max((one for one in scored if one[1].KS <= _MAX_WARPS), key=lambda one: one[0])
    turns = max(1, min(best.unroll, _PIECES_PER_TURN // (best.NT * NB)) // best.D)
    return replace(best, unroll=turns * best.D)
