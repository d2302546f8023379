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

from collections.abc import Sequence
from functools import lru_cache

from nvfp4_tvm.arch import Arch
from nvfp4_tvm.schedules import gemm_wgmma_kernel as rs
from nvfp4_tvm.schedules import gemm_wgmma_ss_kernel as ss
from nvfp4_tvm.schedules.activation_kernel import tile_activations_kernel
from nvfp4_tvm.schedules.activation_layout import tiles_shape
from nvfp4_tvm.schedules.base import MatmulProblem, MRange
from nvfp4_tvm.schedules.gemm_hand_over_kernel import zero_flags_kernel
from nvfp4_tvm.schedules.gemm_wgmma_choice import AnyConfig, choices
from nvfp4_tvm.schedules.gemm_wgmma_ss_config import SharedWgmmaConfig
from nvfp4_tvm.schedules.hopper_rule import HopperRule
from nvfp4_tvm.schedules.kernel import CudaKernel, Launch, Workspace


class GemmWgmma(HopperRule[AnyConfig]):
    """M from 17 (fewer rows belong to the GEMV family), see `HopperRule`."""

    name = "gemm_wgmma"

    def choices(self, N: int, K: int, arch: Arch) -> Sequence[tuple[MRange, AnyConfig]]:
        """Return the ranges of M with their configurations, in order."""
        return choices(N, K, arch)

    def kernel(self, problem: MatmulProblem, config: AnyConfig, arch: Arch) -> CudaKernel:
        """Return the kernel of one configuration, for any M."""
        return wgmma_kernel(problem, config, max(card.sms for card in arch.cards))


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
