"""Numbers of the generated CUDA, run on the CPU; those of a GPU are in test_gemm_wgmma.py."""

import pytest
from cuda_on_host import check_rows, kernel_on_host

from nvfp4_tvm.schedules.base import MatmulProblem
from nvfp4_tvm.schedules.gemm_wgmma import wgmma_kernel
from nvfp4_tvm.schedules.gemm_wgmma_config import WgmmaConfig
from nvfp4_tvm.target import cuda_target

SM_90 = cuda_target("sm_90").target


@pytest.mark.parametrize(
    ("problem", "config", "sms"),
    [
        (MatmulProblem(100, 400, bias=True, residual=True), WgmmaConfig(32, 1, 4, 4, 2, residents=3), 1),
        (
            MatmulProblem(272, 1040, x_dtype="float16", out_dtype="float16", activation="silu_mul"),
            WgmmaConfig(64, 2, 3, 2, 1, overhead=0),
            4,
        ),
        (MatmulProblem(24, 48, out_dtype="float32"), WgmmaConfig(128, 3, 4, 3, 1), 2),
    ],
    ids=str,
)
def test_numbers(problem, config, sms):
    run = kernel_on_host(wgmma_kernel(problem, config, sms), SM_90)
    check_rows(run, problem, (1, 17, 33, 100))
