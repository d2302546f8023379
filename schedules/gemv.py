"""The GEMV family, M = 1..32 on sm_80 and later: which configuration of :mod:`.gemv_kernel` a problem gets."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator

from tvm.target import Target

from nvfp4_tvm import layout
from nvfp4_tvm.arch import MAX_THREADS_PER_BLOCK, STATIC_SHARED_BYTES, WARP_SIZE, Arch
from nvfp4_tvm.schedules.base import KernelRule, MatmulProblem, MRange
from nvfp4_tvm.schedules.gemv_kernel import GemvConfig, gemv
from nvfp4_tvm.schedules.gemv_measured import MEASURED
from nvfp4_tvm.schedules.intrin.mma_sync import TOKENS
from nvfp4_tvm.schedules.kernel import CudaKernel, Launch

#: Largest M the kernel is made for: four eights of tokens.
MAX_M = 4 * TOKENS
#: Where the configuration may change: M up to the first number, for weights of up to the second one's elements.
#: Larger weights are left to the GEMM families, which read activations less often (measured on an H200).
_RANGES = ((4, None), (8, None), (16, None), (24, 1 << 27), (MAX_M, 1 << 25))

#: What the choice considers.
_WARPS = range(1, MAX_THREADS_PER_BLOCK // WARP_SIZE + 1)
_TILES = (1, 2, 3, 4)
_DEPTHS = (1, 2, 3, 4)
#: Pieces of weights (a tile, a 128-block) that a turn of the main loop may hold before its code leaves the
#: instruction cache: about 150 instructions of 16 bytes each, in a cache of 128 KiB.
_PIECES_PER_TURN = 44
#: Bytes in flight and warps of an SM beyond which more do not help, and what an eight of tokens costs beside the
#: weights. Fitted to 190 configurations of ten weights, M = 8, 16 and 24: the choice takes 1.035 times the time of
#: the best one in the geometric mean, 1.06 times on four other weights with two to four configurations each.
_BYTES_IN_FLIGHT = 50_000
_BUSY_WARPS, _BUSY_EXPONENT = 24, 0.3
_TOKENS_COST = 0.5


def usual_sms(arch: Arch) -> int:
    """SMs to fit waves to: what most of the architecture's cards have, the fewest of them where none does.

    A grid that fits a card at once fits a larger one too, and leaves some of it idle; the other way around it
    needs a second wave.
    """
    return min(statistics.multimode(card.sms for card in arch.cards))


def registers(NB: int, NT: int, D: int) -> int:
    """Estimate a thread's registers: accumulators, activations, weights in flight, addresses and decoding."""
    fixed = 20 + 4 * NT * NB + 4 * NB
    if NB == 1:
        return fixed + 9 * NT * max(2 * D, 3) // 2
    return (
        fixed
        + 9 * NT * D
        + 12 * (NT - 1)
        + (8 * (NB - 1) * (NT - 1) if D == 1 else 0)
        + (16 if NB > 3 else 0)
    )


def candidates(N: int, K: int, NB: int, arch: Arch) -> Iterator[tuple[float, GemvConfig]]:
    """Yield configurations with their :func:`score`."""
    sms = usual_sms(arch)
    _, steps = layout.tiles(N, K)
    for NT, KS, D in itertools.product(_TILES, (KS for KS in _WARPS if KS <= steps), _DEPTHS):
        shared = KS * TOKENS * (NT * layout.TILE_N + 4) * 4
        fit = arch.blocks_per_sm(KS * WARP_SIZE, registers(NB, NT, D), shared)
        if shared > STATIC_SHARED_BYTES or not fit or D > max(2, -(-steps // KS)):
            continue
        config = _config(KS, NT, D, K, arch)
        yield score(config, N, K, NB, fit, sms), config


def score(config: GemvConfig, N: int, K: int, NB: int, fit: int, sms: int) -> float:
    """Return a number that grows with the share of the memory's speed that a configuration should reach.

    Parameters
    ----------
    config : GemvConfig
        The configuration.
    N, K : int
        Shape of the weight.
    NB : int
        Eights of tokens.
    fit, sms : int
        Blocks that an SM holds at the same time, and SMs.
    """
    KS, NT = config.KS, config.NT
    tiles, steps = layout.tiles(N, K)
    piece = layout.TILE_N * layout.TILE_K * 9 // 16  # bytes: 4 bits a code, 8 bits for 16 of them
    blocks, warp_steps = -(-tiles // NT), -(-steps // KS)
    resident = min(fit, -(-blocks // sms))
    waves = -(-blocks // (resident * sms))
    # How full the SMs are over the waves, and the warps of a block over its steps
    full = tiles / (NT * resident * sms * waves)
    even = steps / (KS * warp_steps)
    flight = min(1.0, resident * KS * NT * min(config.D, warp_steps) * piece / _BYTES_IN_FLIGHT)
    busy = min(1.0, resident * KS / _BUSY_WARPS) ** _BUSY_EXPONENT
    # Activations are loaded once for NT tiles
    return full * even * flight * busy / (1 + _TOKENS_COST * NB / NT)


def _config(KS: int, NT: int, D: int, K: int, arch: Arch, resident: int = 0) -> GemvConfig:
    """Return a configuration with as long a turn of the main loop as the instruction cache holds."""
    turn = _PIECES_PER_TURN // NT // D * D
    warp_steps = -(-layout.tiles(1, K)[1] // KS)
    unroll = max(D, min(turn, -(-warp_steps // D) * D))
    return GemvConfig(KS=KS, NT=NT, D=D, unroll=unroll, resident=resident, pdl=arch.pdl)


def choose(N: int, K: int, high: int, arch: Arch) -> GemvConfig:
    """Choose the configuration for ``M <= high``: a measured one, else the best score, the first of equals."""
    measured = MEASURED.get((N, K), {})
    for bound, (KS, NT, D, *resident) in measured.items():
        if high <= bound:
            return _config(KS, NT, D, K, arch, *resident)
    return max(candidates(N, K, -(-high // TOKENS), arch), key=lambda scored: scored[0])[1]


class Gemv(KernelRule):
    """Few rows of bfloat16 or float16 activations.

    Parameters
    ----------
    config : GemvConfig, optional
        Use this configuration for every M instead of choosing one; tuners and tests pass it.
    """

    name = "gemv"

    def __init__(self, config: GemvConfig | None = None) -> None:
        self.config = config

    def ranges(self, N: int, K: int, arch: Arch) -> list[MRange]:
        """Return the ranges of M that have one configuration each, in order."""
        highs = [high for high, elements in _RANGES if elements is None or N * K <= elements]
        return [MRange(low + 1, high) for low, high in zip([0, *highs], highs, strict=False)]

    def apply(self, problem: MatmulProblem, target: Target) -> CudaKernel | None:
        """Return the kernel, or None for more rows, other activations or another target."""
        arch = self.arch_of(problem, target)
        if arch is None:
            return None
        if problem.M.high is None or problem.M.high > MAX_M:
            return self.refuse(problem, f"M is {problem.M}, expected at most {MAX_M}")
        NB = -(-problem.M.high // TOKENS)
        config = self.config or choose(problem.N, problem.K, problem.M.high, arch)
        function, arguments = gemv(problem, NB, config)
        return CudaKernel(f"gemv_m{NB * TOKENS}_{config}", (Launch(function, arguments, "tirx"),))
