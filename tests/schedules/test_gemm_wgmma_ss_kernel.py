"""Numbers of the generated CUDA, run on the CPU; those of a GPU are in test_gemm_wgmma.py."""

import pytest
from cuda_on_host import check_rows, kernel_on_host

from nvfp4_tvm.schedules.base import MatmulProblem
from nvfp4_tvm.schedules.gemm_wgmma import wgmma_kernel
from nvfp4_tvm.schedules.gemm_wgmma_ss_config import SharedWgmmaConfig
from nvfp4_tvm.target import cuda_target

SM_90 = cuda_target("sm_90").target


@pytest.mark.parametrize(
    ("problem", "config", "sms"),
    [
        # Outputs stored one by one, and in boxes; of pairs; one decoding warpgroup, and two
        (MatmulProblem(100, 400, bias=True, residual=True), SharedWgmmaConfig(128, 4, 3, 2), 2),
        (MatmulProblem(264, 912, bias=True), SharedWgmmaConfig(160, 3, 2, 1, overhead=0), 4),
        (
            MatmulProblem(
                272, 400, x_dtype="float16", out_dtype="float16", activation="silu_mul", residual=True
            ),
            SharedWgmmaConfig(128, 3, 2, 2),
            1,
        ),
    ],
    ids=str,
)
def test_numbers(problem, config, sms):
    run = kernel_on_host(wgmma_kernel(problem, config, sms), SM_90)
    check_rows(run, problem, (1, 17, 200))
