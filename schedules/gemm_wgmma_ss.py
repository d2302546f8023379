"""GEMM for Hopper (sm_90a) with both operands in shared memory."""

from __future__ import annotations

from functools import lru_cache

from nvfp4_tvm.schedules.base import MatmulProblem
from nvfp4_tvm.schedules.gemm_wgmma_ss_config import WARPS, SharedWgmmaConfig
from nvfp4_tvm.schedules.gemm_wgmma_ss_kernel import arguments, matmul_kernel, zero_flags_kernel
from nvfp4_tvm.schedules.kernel import CudaKernel, Launch, Workspace


@lru_cache(maxsize=32)
def shared_wgmma_kernel(problem: MatmulProblem, config: SharedWgmmaConfig, sms: int) -> CudaKernel:
    """Return the kernel of one configuration for a GPU with ``sms`` multiprocessors."""
    flags = (config.grid(sms), WARPS)
    return CudaKernel(
        f"gemm_wgmma_ss_{config.name}",
        (
            Launch(zero_flags_kernel(flags), ("flags",), "tirx"),
            Launch(matmul_kernel(problem, config, sms), arguments(problem), "tirx", arch_specific=True),
        ),
        (
            Workspace("partials", "float32", lambda M: config.partials_shape(sms)),
            Workspace("flags", "uint32", lambda M: flags),
        ),
    )
