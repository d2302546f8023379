"""The cluster GEMM family for Hopper (sm_90a): few rows of activations, a weight of moderate size, one launch.

The kernel is in :mod:`nvfp4_tvm.schedules.gemm_cluster_kernel`, and which M it serves is chosen in
:mod:`nvfp4_tvm.schedules.gemm_cluster_choice`; other M are left to the next rules of the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from tvm.target import Target

from nvfp4_tvm.arch import Arch, get_arch
from nvfp4_tvm.schedules.base import KernelRule, MatmulProblem, MRange
from nvfp4_tvm.schedules.gemm_cluster_choice import choices
from nvfp4_tvm.schedules.gemm_cluster_config import ClusterConfig
from nvfp4_tvm.schedules.gemm_cluster_kernel import arguments, matmul_kernel
from nvfp4_tvm.schedules.kernel import CudaKernel, Launch


class GemmCluster(KernelRule):
    """Any N and K on sm_90, bf16 and fp16 activations, where the model of its time says so.

    Parameters
    ----------
    config : ClusterConfig, optional
        Use this configuration for every M instead of choosing one; tuners and tests pass it.
    """

    name = "gemm_cluster"

    def __init__(self, config: ClusterConfig | None = None) -> None:
        self.config = config

    def ranges(self, N: int, K: int, arch: Arch) -> Sequence[MRange]:
        """Return the ranges of M that have one configuration each, in order."""
        if not arch.wgmma:
            return []
        if self.config is not None:
            return [MRange()]
        return [m_range for m_range, _ in choices(N, K, arch)]

    def apply(self, problem: MatmulProblem, target: Target) -> CudaKernel | None:
        """Return the kernel, or None where it does not apply or others are faster."""
        if target.kind.name != "cuda":
            return self.refuse(problem, f"target is {target.kind.name}, not cuda")
        arch = get_arch(str(target.attrs["arch"]))
        if not arch.wgmma:
            return self.refuse(problem, f"{arch.name} has no wgmma")
        if problem.x_dtype == "float32":
            return self.refuse(problem, "wgmma reads 16-bit activations, found float32")
        config = self.config
        if config is None:
            found = [c for m_range, c in choices(problem.N, problem.K, arch) if m_range.covers(problem.M)]
            if not found:
                return self.refuse(
                    problem, f"others are faster, or no one configuration covers M {problem.M}"
                )
            (config,) = found
        anywhere = replace(problem, M=MRange(), dynamic=True)  # ranges share configurations, hence kernels
        return cluster_kernel(anywhere, config)


@lru_cache(maxsize=32)
def cluster_kernel(problem: MatmulProblem, config: ClusterConfig) -> CudaKernel:
    """Return the kernel of one configuration."""
    launch = Launch(matmul_kernel(problem, config), arguments(problem), "tirx", arch_specific=True)
    return CudaKernel(f"{GemmCluster.name}_{config.name}", (launch,))
