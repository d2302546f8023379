"""GEMM for Hopper (sm_90a): which tile serves which M, and the rule that makes the kernel.

The kernel (:mod:`nvfp4_tvm.schedules.gemm_wgmma_kernel`) spreads all tiles and their 128-blocks of k evenly
over a fixed grid, so that neither N nor M has to fit the number of SMs. What is left to choose is how many
rows of padding M gets, and how an SM's registers and shared memory are divided among resident blocks.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from tvm.target import Target

from nvfp4_tvm.arch import ARCHS, Arch, get_arch
from nvfp4_tvm.schedules.activation_kernel import tile_activations_kernel
from nvfp4_tvm.schedules.activation_layout import tiles_shape
from nvfp4_tvm.schedules.base import KernelRule, MatmulProblem, MRange
from nvfp4_tvm.schedules.gemm_wgmma_choice import choices
from nvfp4_tvm.schedules.gemm_wgmma_config import WgmmaConfig
from nvfp4_tvm.schedules.gemm_wgmma_kernel import arguments, matmul_kernel
from nvfp4_tvm.schedules.kernel import CudaKernel, Launch, Workspace


class GemmWgmma(KernelRule):
    """Any N and K on sm_90, bf16 and fp16 activations, M from 17 (fewer rows belong to the GEMV family).

    Parameters
    ----------
    config : WgmmaConfig, optional
        Use this configuration for every M instead of choosing one; tuners and tests pass it.
    """

    name = "gemm_wgmma"

    def __init__(self, config: WgmmaConfig | None = None) -> None:
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
def wgmma_kernel(problem: MatmulProblem, config: WgmmaConfig, sms: int) -> CudaKernel:
    """Return the kernel of one configuration for a GPU with ``sms`` multiprocessors.

    A GPU with fewer is right too, but slower: its blocks then run in two rounds.
    """
    flags = (config.grid(sms), config.warps)
    tile_x = tile_activations_kernel(problem.K, problem.x_dtype, config.tokens, flags)
    matmul = matmul_kernel(problem, config, sms)
    return CudaKernel(
        f"{GemmWgmma.name}_{config.name}",
        (
            Launch(tile_x, ("x", "x_tiles", "flags"), "tirx"),
            Launch(matmul, arguments(problem), "tirx", arch_specific=True),
        ),
        (
            Workspace("x_tiles", "uint32", lambda M: tiles_shape(M, problem.K, config.tokens)),
            Workspace("partials", "float32", lambda M: config.partials_shape(sms)),
            Workspace("flags", "uint32", lambda M: flags),
        ),
    )
