"""Streaming GEMM on mma.sync: which tile serves which M, and the rule that makes the kernel.

For some tens to hundreds of rows of activations, where reading the weight once costs as much as multiplying it
(:mod:`nvfp4_tvm.schedules.gemm_stream_kernel`). Runs on every architecture with cp.async and bf16 mma.sync.
"""

from __future__ import annotations

from tvm.target import Target

from nvfp4_tvm.arch import Arch
from nvfp4_tvm.schedules.base import KernelRule, MatmulProblem, MRange
from nvfp4_tvm.schedules.gemm_stream_config import StreamConfig
from nvfp4_tvm.schedules.gemm_stream_kernel import stream_kernel, zero_flags_kernel
from nvfp4_tvm.schedules.gemv import DTYPES, target_arch
from nvfp4_tvm.schedules.kernel import CudaKernel, Launch, Workspace


class GemmStream(KernelRule):
    """Any N and K, bf16 and fp16 activations, M from 17 (fewer rows belong to the GEMV family).

    Parameters
    ----------
    config : StreamConfig, optional
        Use this configuration for every M instead of choosing one; tuners and tests pass it.
    """

    name = "gemm_stream"

    def __init__(self, config: StreamConfig | None = None) -> None:
        self.config = config

    def ranges(self, N: int, K: int, arch: Arch) -> list[MRange]:
        """Return the ranges of M that have one configuration each, in order."""
        if self.config is not None:
            return [MRange()]
        return [m_range for m_range, _ in choices(N, K, arch)]

    def apply(self, problem: MatmulProblem, target: Target) -> CudaKernel | None:
        """Return the kernel, or None where it does not apply or the range of M spans two configurations."""
        if target.kind.name != "cuda":
            return self.refuse(problem, f"target is {target.kind.name}, not cuda")
        arch = target_arch(target)
        if arch is None:
            return self.refuse(problem, f"architecture {target.attrs.get('arch')} is not in the table")
        if problem.x_dtype not in DTYPES:
            return self.refuse(problem, f"activations are {problem.x_dtype}, expected {' or '.join(DTYPES)}")
        config = self.config
        if config is None:
            found = [c for m_range, c in choices(problem.N, problem.K, arch) if _within(problem.M, m_range)]
            if not found:
                return self.refuse(problem, f"no one configuration covers M {problem.M}")
            (config,) = found
        if config.shared_bytes > arch.shared_per_block:
            return self.refuse(
                problem,
                f"{config.name} needs {config.shared_bytes} bytes of shared memory, {arch.name} has "
                f"{arch.shared_per_block}",
            )
        return stream_gemm(problem, config, arch)


def _within(part: MRange, whole: MRange) -> bool:
    return part.low in whole and (whole.high is None or (part.high is not None and part.high <= whole.high))


def stream_gemm(problem: MatmulProblem, config: StreamConfig, arch: Arch) -> CudaKernel:
    """Return the launches of one configuration: where tiles may be cut, one before clears the flags."""
    sms = max(card.sms for card in arch.cards)
    flags = (config.grid(sms), config.warps)
    optional = tuple(name for name in ("bias", "residual") if getattr(problem, name))
    operands = ("x", "words", "scales", "global_scale", *optional)
    function = stream_kernel(problem, config, sms, arch.pdl)
    name = f"{GemmStream.name}_{config.name}"
    if not config.cuts(problem.K):
        return CudaKernel(name, (Launch(function, (*operands, "out"), "tirx"),))
    zero = zero_flags_kernel(*flags, arch.pdl)
    return CudaKernel(
        name,
        (Launch(zero, ("flags",), "tirx"), Launch(function, (*operands, "partials", "flags", "out"), "tirx")),
        (
            Workspace("partials", "float32", lambda M: config.partials_shape(sms)),
            Workspace("flags", "uint32", lambda M: flags),
        ),
    )


#: Highest M and configuration, in order; within the 99 KiB of shared memory of the smallest GPUs.
_TABLE = (
    (32, StreamConfig(32, 4, 2, 3, 2, 2)),
    (64, StreamConfig(64, 8, 2, 3, 2, 1, group=2)),
    (96, StreamConfig(96, 8, 2, 2, 2, 1, group=2)),
    (256, StreamConfig(128, 8, 2, 2, 1, 1, group=2, early=False)),
)
MIN_M = 17


def choices(N: int, K: int, arch: Arch) -> list[tuple[MRange, StreamConfig]]:
    """Return the ranges of M that have one configuration each, in order; other M are not for this family."""
    lows = (MIN_M, *(high + 1 for high, _ in _TABLE))
    return [(MRange(low, high), config) for low, (high, config) in zip(lows, _TABLE, strict=False)]
