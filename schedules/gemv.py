"""The GEMV family, M = 1..16 on sm_80 and later: which configuration of :mod:`.gemv_kernel` a problem gets."""

from __future__ import annotations

from tvm.target import Target

from nvfp4_tvm import layout
from nvfp4_tvm.arch import ARCHS, Arch
from nvfp4_tvm.schedules.base import KernelRule, MatmulProblem
from nvfp4_tvm.schedules.gemv_kernel import TOKENS, GemvConfig, gemv
from nvfp4_tvm.schedules.kernel import CudaKernel, Launch

#: Activation dtypes that mma.m16n8k16 takes.
DTYPES = ("bfloat16", "float16")
#: Largest M: two eights of tokens. Beyond, decoding costs less than the activations' way through registers.
MAX_M = 2 * TOKENS


def target_arch(target: Target) -> Arch | None:
    """Return the architecture of a CUDA target, or None if it is not in the table."""
    name = str(target.attrs.get("arch", ""))
    return next((arch for arch in ARCHS.values() if name in (arch.name, arch.compile_arch)), None)


def choose(N: int, K: int, NB: int, arch: Arch) -> GemvConfig:
    """Choose the configuration for ``M <= 8 * NB``.

    Deterministic, from the shape and the architecture's largest card.
    """
    sms = max(card.sms for card in arch.cards)
    tiles, steps = layout.tiles(N, K)
    # about 16 warps an SM hide the memory's latency
    KS = min(16, steps, max(1, round(16 * sms / tiles)))
    NT = NB if tiles >= 4 * sms else 1
    return GemvConfig(KS=KS, NT=NT, P=3 * NT, pdl=arch.pdl)


class Gemv(KernelRule):
    """At most 16 rows of bfloat16 or float16 activations."""

    name = "gemv"

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
        config = choose(problem.N, problem.K, NB, arch)
        function, arguments = gemv(problem, NB, config)
        return CudaKernel(f"gemv_m{NB * TOKENS}_{config}", (Launch(function, arguments, "tirx"),))
