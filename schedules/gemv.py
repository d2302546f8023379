"""The GEMV family, M = 1..16 on sm_80 and later: which configuration of :mod:`.gemv_kernel` a problem gets."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from tvm.target import Target

from nvfp4_tvm import layout
from nvfp4_tvm.arch import ARCHS, STATIC_SHARED_BYTES, WARP_SIZE, Arch
from nvfp4_tvm.schedules.base import KernelRule, MatmulProblem
from nvfp4_tvm.schedules.gemv_kernel import TOKENS, GemvConfig, gemv
from nvfp4_tvm.schedules.gemv_measured import MEASURED
from nvfp4_tvm.schedules.kernel import CudaKernel, Launch

#: Activation dtypes that mma.m16n8k16 takes.
DTYPES = ("bfloat16", "float16")
#: Largest M: two eights of tokens.
MAX_M = 2 * TOKENS

#: What the choice considers.
_WARPS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 15, 16, 20, 21, 24)
_TILES = (1, 2, 3, 4, 5)
_DEPTHS = (2, 3, 4)
#: Pieces of weights (a tile, a 128-block) that a turn of the main loop may hold before its code leaves the
#: instruction cache: about 150 instructions of 16 bytes each, in a cache of 128 KiB.
_PIECES_PER_TURN = 44
#: Bytes in flight and warps of an SM beyond which more do not help: 4.8 TB/s over 132 SMs at about 1.5 us.
_BYTES_IN_FLIGHT = 60_000
_BUSY_WARPS = 30


def target_arch(target: Target) -> Arch | None:
    """Return the architecture of a CUDA target, or None if it is not in the table."""
    name = str(target.attrs.get("arch", ""))
    return next((arch for arch in ARCHS.values() if name in (arch.name, arch.compile_arch)), None)


def usual_sms(arch: Arch) -> int:
    """SMs to fit waves to: what most of the architecture's cards have, the fewest of them where none does.

    A grid that fits a card at once fits a larger one too, and leaves some of it idle; the other way around it
    needs a second wave.
    """
    return min(statistics.multimode(card.sms for card in arch.cards))


def registers(NB: int, NT: int, D: int) -> int:
    """Estimate a thread's registers: accumulators, activations, weights in flight, addresses and decoding."""
    return 16 + 4 * NT * NB + 4 * NB + 9 * D * NT


def candidates(N: int, K: int, NB: int, arch: Arch) -> Iterator[tuple[float, GemvConfig]]:
    """Yield configurations with a score, the share of the memory's speed they should reach."""
    sms = usual_sms(arch)
    tiles, steps = layout.tiles(N, K)
    piece = layout.TILE_N * layout.TILE_K * 9 // 16  # bytes: 4 bits a code, 8 bits for 16 of them
    for NT in _TILES:
        blocks = -(-tiles // NT)
        for KS in (KS for KS in _WARPS if KS <= steps):
            if KS * TOKENS * (NT * layout.TILE_N + 4) * 4 > STATIC_SHARED_BYTES:
                continue
            warp_steps = -(-steps // KS)
            for D in _DEPTHS:
                shared = KS * TOKENS * (NT * layout.TILE_N + 4) * 4
                fit = arch.blocks_per_sm(KS * WARP_SIZE, registers(NB, NT, D), shared)
                if not fit:
                    continue
                resident = min(fit, -(-blocks // sms))
                waves = -(-blocks // (resident * sms))
                if D > max(2, warp_steps):
                    continue
                # How full the SMs are over the waves, and the warps of a block over its steps
                full = tiles / (NT * resident * sms * waves)
                even = steps / (KS * warp_steps)
                flight = min(1.0, resident * KS * NT * D * piece / _BYTES_IN_FLIGHT) ** 0.5
                busy = min(1.0, resident * KS / _BUSY_WARPS) ** 0.3
                # Activations are loaded once for NT tiles, and take more loads than weights for 16 tokens
                reuse = 1.0 if NB == 1 else min(1.0, (NT + 1) / 4) ** 0.4
                score = full * even * flight * busy * reuse
                yield score, _config(KS, NT, D, K, arch)


def _config(KS: int, NT: int, D: int, K: int, arch: Arch) -> GemvConfig:
    """Return a configuration with as long a turn of the main loop as the instruction cache holds."""
    turn = _PIECES_PER_TURN // NT // D * D
    warp_steps = -(-layout.tiles(1, K)[1] // KS)
    return GemvConfig(KS=KS, NT=NT, D=D, unroll=max(D, min(turn, -(-warp_steps // D) * D)), pdl=arch.pdl)


def choose(N: int, K: int, high: int, arch: Arch) -> GemvConfig:
    """Choose the configuration for ``M <= high``: a measured one, else the best score, the first of equals."""
    measured = MEASURED.get((N, K), {})
    for bound, (KS, NT, D) in measured.items():
        if high <= bound:
            return _config(KS, NT, D, K, arch)
    return max(candidates(N, K, -(-high // TOKENS), arch), key=lambda scored: scored[0])[1]


class Gemv(KernelRule):
    """At most 16 rows of bfloat16 or float16 activations.

    Parameters
    ----------
    config : GemvConfig, optional
        Instead of the one :func:`choose` would take.
    """

    name = "gemv"

    def __init__(self, config: GemvConfig | None = None) -> None:
        self.config = config

    def apply(self, problem: MatmulProblem, target: Target) -> CudaKernel | None:
        """Return the kernel, or None for more rows, other activations or another target."""
        if target.kind.name != "cuda":
            return self.refuse(problem, f"target is {target.kind.name}, not cuda")
        arch = target_arch(target)
        if arch is None:
            return self.refuse(problem, f"architecture {target.attrs.get('arch')} is not in the table")
        if problem.x_dtype not in DTYPES:
            return self.refuse(problem, f"activations are {problem.x_dtype}, expected {' or '.join(DTYPES)}")
        if problem.M.high is None or problem.M.high > MAX_M:
            return self.refuse(problem, f"M is {problem.M}, expected at most {MAX_M}")
        NB = -(-problem.M.high // TOKENS)
        config = self.config or choose(problem.N, problem.K, problem.M.high, arch)
        function, arguments = gemv(problem, NB, config)
        return CudaKernel(f"gemv_m{NB * TOKENS}_{config}", (Launch(function, arguments, "tirx"),))
