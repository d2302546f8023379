"""The cluster GEMM family for Hopper (sm_90a): few rows of activations, a weight of moderate size, one launch.

The kernel is in :mod:`nvfp4_tvm.schedules.gemm_cluster_kernel`, and which M it serves is chosen in
:mod:`nvfp4_tvm.schedules.gemm_cluster_choice`; other M are left to the next rules of the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from nvfp4_tvm.arch import Arch
from nvfp4_tvm.schedules.base import MatmulProblem, MRange
from nvfp4_tvm.schedules.gemm_cluster_choice import choices
from nvfp4_tvm.schedules.gemm_cluster_config import ClusterConfig
from nvfp4_tvm.schedules.gemm_cluster_kernel import arguments, matmul_kernel
from nvfp4_tvm.schedules.hopper_rule import HopperRule
from nvfp4_tvm.schedules.kernel import CudaKernel, Launch


class GemmCluster(HopperRule[ClusterConfig]):
    """The M for which a model of its time says so, see `HopperRule`."""

    name = "gemm_cluster"

    def choices(self, N: int, K: int, arch: Arch) -> Sequence[tuple[MRange, ClusterConfig]]:
        """Return the ranges of M with their configurations, in order."""
        return choices(N, K, arch)

    def kernel(self, problem: MatmulProblem, config: ClusterConfig, arch: Arch) -> CudaKernel:
        """Return the kernel of one configuration, for any M."""
        return cluster_kernel(problem, config)


@lru_cache(maxsize=32)
def cluster_kernel(problem: MatmulProblem, config: ClusterConfig) -> CudaKernel:
    """Return the kernel of one configuration."""
    launch = Launch(matmul_kernel(problem, config), arguments(problem), "tirx", arch_specific=True)
    return CudaKernel(f"{GemmCluster.name}_{config.name}", (launch,))
