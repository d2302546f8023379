"""Numbers of the generated CUDA, run on the CPU; those of a GPU are in test_gemm_cluster.py."""

import pytest
from cuda_on_host import check_rows, kernel_on_host

from nvfp4_tvm.schedules.base import MatmulProblem
from nvfp4_tvm.schedules.gemm_cluster import cluster_kernel
from nvfp4_tvm.schedules.gemm_cluster_config import ClusterConfig
from nvfp4_tvm.target import cuda_target

SM_90 = cuda_target("sm_90").target


@pytest.mark.parametrize(
    ("problem", "config"),
    [
        (MatmulProblem(100, 912, bias=True, residual=True), ClusterConfig(48, 3, 1, 3, 6, 4)),
        (
            MatmulProblem(272, 1040, x_dtype="float16", out_dtype="float16", activation="silu_mul"),
            ClusterConfig(32, 1, 2, 8, 3, 2),
        ),
        (MatmulProblem(24, 48, out_dtype="float32"), ClusterConfig(96, 2, 2, 2, 5, 3)),
        (MatmulProblem(40, 400), ClusterConfig(32, 1, 1, 1, 3, 3, residents=2)),
    ],
    ids=str,
)
def test_numbers(problem, config):
    run = kernel_on_host(cluster_kernel(problem, config), SM_90)
    check_rows(run, problem, (1, 17, 33, 100))
