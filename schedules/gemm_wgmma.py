"""GEMM for Hopper (sm_90a): which tile serves which M, and the rule that makes the kernel.

There are two kernels, named by where wgmma finds its operands. RS (:mod:`.gemm_wgmma_kernel`) decodes weights in
the multiplying warps, into wgmma's register operand, and needs activations rearranged by a launch before: for few
rows, where reading the weights is what counts. SS (:mod:`.gemm_wgmma_ss_kernel`) has warps of its own for
decoding, into shared memory, and reads activations as they are: for many rows, where the multiplications count.

Both spread all tiles and their 128-blocks of k evenly over a fixed grid, so that neither N nor M has to fit the
number of SMs. What is left to choose is how many rows of padding M gets, and how an SM's registers and shared
memory are divided.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from tvm.target import Target

from nvfp4_tvm.arch import ARCHS, Arch, get_arch
from nvfp4_tvm.schedules import gemm_wgmma_kernel as rs
from nvfp4_tvm.schedules import gemm_wgmma_ss_kernel as ss
from nvfp4_tvm.schedules.activation_kernel import tile_activations_kernel
from nvfp4_tvm.schedules.activation_layout import tiles_shape
from nvfp4_tvm.schedules.base import KernelRule, MatmulProblem, MRange
from nvfp4_tvm.schedules.gemm_hand_over_kernel import zero_flags_kernel
from nvfp4_tvm.schedules.gemm_wgmma_choice import AnyConfig, choices
from nvfp4_tvm.schedules.gemm_wgmma_ss_config import SharedWgmmaConfig
from nvfp4_tvm.schedules.kernel import CudaKernel, Launch, Workspace


class GemmWgmma(KernelRule):
    """Any N and K on sm_90, bf16 and fp16 activations, M from 17 (fewer rows belong to the GEMV family).

    Parameters
    ----------
    config : WgmmaConfig or SharedWgmmaConfig, optional
        Use this configuration for every M instead of choosing one; tuners and tests pass it.
    """

    name = "gemm_wgmma"

    def __init__(self, config: AnyConfig | None = None) -> None:
        self.config = config

    def ranges(self, N: int, K: int, arch: Arch) -> list[MRange]:
        """Return the ranges of M that have one configuration each, in order."""
        if not arch.wgmma:
            return []
        if self.config is not None:
            return [MRange()]
        return [m_range for m_range, _ in choices(N, K, arch)]

    def apply(self, problem: MatmulProblem, target: Target) -> CudaKernel | None:
        """Return the kernel, or None where it does not apply or the range of M spans two configurations."""
        if target.kind.name != "cuda":
            return self.refuse(problem, f"target is {target.kind.name}, not cuda")
        arch = get_arch(str(target.attrs["arch"]))
        if not arch.wgmma:
            return self.refuse(problem, f"{arch.name} has no wgmma, expected {_wgmma_names()}")
        if problem.x_dtype == "float32":
            return self.refuse(problem, "wgmma reads 16-bit activations, found float32")
        config = self.config
        if config is None:
            found = [c for m_range, c in choices(problem.N, problem.K, arch) if m_range.covers(problem.M)]
            if not found:
                return self.refuse(problem, f"no one configuration covers M {problem.M}")
            (config,) = found
        anywhere = replace(problem, M=MRange(), dynamic=True)  # ranges share configurations, hence kernels
        return wgmma_kernel(anywhere, config, max(card.sms for card in arch.cards))


def _wgmma_names() -> str:
    return ", ".join(arch.name for arch in ARCHS.values() if arch.wgmma)


@lru_cache(maxsize=32)
def wgmma_kernel(problem: MatmulProblem, config: AnyConfig, sms: int) -> CudaKernel:
    """Return the kernel of one configuration for a GPU with ``sms`` multiprocessors.

    A GPU with fewer is right too, but slower: its blocks then run in two rounds.
    """
    flags = (config.grid(sms), config.warps)
    x_tiles: tuple[Workspace, ...] = ()
    if isinstance(config, SharedWgmmaConfig):
        before = Launch(zero_flags_kernel(flags), ("flags",), "tirx")
        names, matmul = ss.arguments(problem), ss.matmul_kernel(problem, config, sms)
    else:
        tokens = config.tokens
        tile_x = tile_activations_kernel(problem.K, problem.x_dtype, tokens, flags)
        before = Launch(tile_x, ("x", "x_tiles", "flags"), "tirx")
        names, matmul = rs.arguments(problem), rs.matmul_kernel(problem, config, sms)
        x_tiles = (Workspace("x_tiles", "uint32", lambda M: tiles_shape(M, problem.K, tokens)),)
    return CudaKernel(
        f"{GemmWgmma.name}_{config.name}",
        (before, Launch(matmul, names, "tirx", arch_specific=True)),
        (
            *x_tiles,
            Workspace("partials", "float32", lambda M: config.partials_shape(sms)),
            Workspace("flags", "uint32", lambda M: flags),
        ),
    )
