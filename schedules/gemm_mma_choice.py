"""Which tiles the mma.sync GEMM takes for a weight and a range of M: one table, and a model of time over it.

The time of a launch is close to ``START + blocks per SM * stages of a block * cost``, whether the blocks of an SM
run one after the other or side by side. ``cost`` is measured: microseconds a block needs for 128 k on an H200
(kernels built for sm_89, weights cold; N x K of 21504 x 5376, M = 48 to 777, within 3 % where an SM has several
blocks; tiles of 32 tokens at M = 32, within 5 %, over 5376 x 21504 and 4096 x 4096 too). That other cards are
faster or slower at all of the tiles alike is an assumption; what decides is how well tiles fill a card.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import inf

from nvfp4_tvm import layout
from nvfp4_tvm.arch import MIB, Arch
from nvfp4_tvm.schedules.base import MRange
from nvfp4_tvm.schedules.gemm_mma_config import MmaConfig

#: Fewer rows belong to the GEMV family.
MIN_M = 17
#: Where configurations may change: what two to four tiles of the heights below hold. Within a range each
#: configuration is judged by the last M, which fills its tiles best.
BOUNDS = (
    *(32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 336, 384, 448, 512, 672, 784, 896, 1024),
    *(1536, 2048),
)
#: M that stand for all beyond the last bound.
LARGE_M = (3072, 4096, 8192)
#: A range takes a kernel of a range before unless another is faster by this factor: kernels cost compilation.
WORTH_A_KERNEL = 1.03

#: Launch, prologue and epilogue of a block, microseconds.
START = 5.0
#: The launch that adds the splits: microseconds, and bytes it reads and writes a microsecond. Estimates.
ADD_START, ADD_RATE = 4.0, 4.0e6
MAX_SPLITS = 4
#: Most memory the sums of the splits may take.
MAX_SUMS = 128 * MIB


@dataclass(frozen=True)
class Candidate:
    """A configuration and its ``cost``, and the one of blocks alone on their SMs, where that was measured.

    ``spills_on`` names architectures for which ptxas keeps some of its registers in memory for some weights.
    """

    config: MmaConfig
    cost: float
    alone: float | None = None
    spills_on: tuple[str, ...] = ()


CANDIDATES = (
    Candidate(MmaConfig(128, 128, 128, 32, stages=2), 1.222),
    Candidate(MmaConfig(112, 128, 112, 32, stages=2), 1.095),
    Candidate(MmaConfig(96, 128, 96, 32, stages=2), 0.98),
    Candidate(MmaConfig(80, 128, 80, 32, stages=2), 0.845),
    Candidate(MmaConfig(96, 192, 96, 48, stages=2), 1.41, 1.55, ("sm_80", "sm_86")),
    Candidate(MmaConfig(80, 192, 80, 48, stages=2), 1.18, 1.27),
    Candidate(MmaConfig(64, 192, 64, 48, stages=3), 0.99, 1.13),
    Candidate(MmaConfig(48, 192, 48, 48, stages=3), 0.836, 0.94),
    Candidate(MmaConfig(128, 96, 64, 48, stages=2), 1.01),
    Candidate(MmaConfig(96, 96, 96, 48, k_warps=2, stages=2), 0.735),
    Candidate(MmaConfig(80, 96, 80, 48, k_warps=2, stages=2), 0.61),
    Candidate(MmaConfig(64, 128, 64, 64, k_warps=2, stages=3), 0.692),
    Candidate(MmaConfig(64, 96, 64, 48, k_warps=2, stages=3), 0.573),
    Candidate(MmaConfig(64, 64, 64, 32, k_warps=2, stages=3), 0.381),
    Candidate(MmaConfig(48, 128, 48, 32, stages=3), 0.56),
    Candidate(MmaConfig(48, 96, 48, 48, k_warps=2, stages=3), 0.43),
    Candidate(MmaConfig(48, 64, 48, 32, k_warps=2, stages=3), 0.302),
    Candidate(MmaConfig(32, 96, 32, 48, k_warps=2, stages=4), 0.343),
    Candidate(MmaConfig(32, 64, 32, 32, k_warps=2, stages=4), 0.243),
    Candidate(MmaConfig(64, 32, 64, 32, k_warps=4, stages=4), 0.229, 0.249),
    Candidate(MmaConfig(32, 32, 32, 32, k_warps=4, stages=4), 0.168),
)


def ranges(N: int, K: int, arch: Arch) -> tuple[MRange, ...]:
    """Return the ranges of M with one configuration each, from :data:`MIN_M` up."""
    return tuple(part for part, _ in _plan(N, K, arch))


def choose_config(N: int, K: int, M: MRange, arch: Arch) -> MmaConfig:
    """Return the tiles for a weight [N, K] and a range of M; of several, those of its largest M."""
    plan = _plan(N, K, arch)
    return next((config for part, config in plan if M.high is not None and M.high in part), plan[-1][1])


def predicted_time(candidate: Candidate, N: int, K: int, M: int, sms: int) -> float:
    """Return the model's microseconds."""
    config = candidate.config
    blocks = -(-M // config.block_m) * -(-N // config.block_n) * config.splits
    time = launch_time(candidate, K, -(-blocks // sms), blocks <= sms)
    if config.splits > 1:
        time += ADD_START + (config.splits + 1) * 4 * M * N / ADD_RATE
    return time


def launch_time(candidate: Candidate, K: int, waves: float, alone: bool) -> float:
    """Return the model's microseconds of one launch of so many blocks an SM, or one that it has to itself."""
    config = candidate.config
    stages = config.stages_along_k(K) * config.block_k / layout.TILE_K
    cost = candidate.alone if candidate.alone is not None and alone else candidate.cost
    return START + waves * stages * cost


def usual_sms(arch: Arch) -> int:
    """SMs to fit waves to: of an even number of cards the smaller's, which fits the larger, not the other way."""
    return statistics.median_low(card.sms for card in arch.cards)


def plan(
    bounds: Sequence[tuple[MRange, Sequence[int]]],
    candidates: Callable[[MRange], Sequence[Candidate]],
    time: Callable[[Candidate, int], float],
    worth_a_kernel: float = WORTH_A_KERNEL,
) -> tuple[tuple[MRange, MmaConfig], ...]:
    """Choose a configuration for each range, the fastest unless one of a range before is nearly as fast.

    Parameters
    ----------
    bounds : sequence of (MRange, sequence of int)
        Neighbouring ranges in order, each with the M that stand for it.
    candidates : callable
        What a range may get.
    time : callable
        ``time(candidate, M)``, microseconds.
    worth_a_kernel : float
        How much faster another must be.
    """
    chosen: list[tuple[MRange, MmaConfig]] = []
    for part, sizes in bounds:
        times = {
            candidate.config: sum(time(candidate, M) / M for M in sizes) for candidate in candidates(part)
        }
        best = min(times, key=lambda config: times[config])
        known = min((config for _, config in chosen), key=lambda config: times.get(config, inf), default=best)
        if times.get(known, inf) <= times[best] * worth_a_kernel:
            best = known
        low = chosen.pop()[0].low if chosen and chosen[-1][1] == best else part.low
        chosen.append((MRange(low, part.high), best))
    return tuple(chosen)


@cache
def _plan(N: int, K: int, arch: Arch) -> tuple[tuple[MRange, MmaConfig], ...]:
    sms = usual_sms(arch)
    lows = (MIN_M, *(bound + 1 for bound in BOUNDS))
    bounds = [
        (MRange(low, high), LARGE_M if high is None else (high,))
        for low, high in zip(lows, (*BOUNDS, None), strict=True)
    ]
    return plan(
        bounds,
        lambda part: _candidates(N, part.high, arch),
        lambda candidate, M: predicted_time(candidate, N, K, M, sms),
    )


def fitting(arch: Arch) -> list[Candidate]:
    """Return the candidates that fit the shared memory and do not spill."""
    return [
        candidate
        for candidate in CANDIDATES
        if candidate.config.shared_bytes() <= arch.shared_per_block and arch.name not in candidate.spills_on
    ]


def _candidates(N: int, high: int | None, arch: Arch) -> list[Candidate]:
    """All configurations that fit and do not spill, with as many splits as their sums may take memory for."""
    result = []
    for candidate in fitting(arch):
        for splits in range(1, MAX_SPLITS + 1):
            if splits == 1 or (high is not None and splits * high * N * 4 <= MAX_SUMS):
                result.append(replace(candidate, config=replace(candidate.config, splits=splits)))
    return result
