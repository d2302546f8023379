"""Numbers of the generated CUDA, run on the CPU; those of a GPU are in test_gemv.py."""

import pytest
from cuda_on_host import kernel_on_host
from mma_problems import Case

from nvfp4_tvm.schedules.base import MatmulProblem
from nvfp4_tvm.schedules.gemv_kernel import GemvConfig, gemv
from nvfp4_tvm.schedules.kernel import CudaKernel, Launch
from nvfp4_tvm.target import cuda_target


def built(problem, NB, config, arch):
    function, arguments = gemv(problem, NB, config)
    kernel = CudaKernel("gemv", (Launch(function, arguments, "tirx"),))
    return kernel_on_host(kernel, cuda_target(arch).target)


@pytest.mark.parametrize(
    ("problem", "NB", "config", "arch"),
    [
        (MatmulProblem(1, 16), 1, GemvConfig(1), "sm_80"),
        (MatmulProblem(40, 144, bias=True), 2, GemvConfig(2, NT=2, unroll=2, pdl=True), "sm_90"),
        (
            MatmulProblem(101, 1424, x_dtype="float16", out_dtype="float32", bias=True, residual=True),
            1,
            GemvConfig(5, NT=3, D=3, unroll=3, resident=2),
            "sm_86",
        ),
        (
            MatmulProblem(96, 1024, x_dtype="float16", out_dtype="float16", activation="silu_mul"),
            3,
            GemvConfig(4, NT=2, D=1, unroll=1),
            "sm_89",
        ),
        (
            MatmulProblem(80, 400, bias=True, residual=True, activation="silu_mul"),
            4,
            GemvConfig(1, NT=4, D=2, unroll=2, pdl=True),
            "sm_90",
        ),
    ],
    ids=str,
)
def test_numbers(problem, NB, config, arch):
    run = built(problem, NB, config, arch)
    for M in {1, 3, 8 * NB - 3, 8 * NB}:
        case = Case.random(problem, M)
        case.check(run(case.operands, case.empty(problem), order=M))


def test_blocks_and_warps():
    config = GemvConfig(4, NT=3)
    assert config.blocks(1) == config.blocks(48) == 1 and config.blocks(49) == 2
    assert config.steps(128) == config.steps(512) == 1 and config.steps(513) == 2
    for wrong in ({"KS": 0}, {"KS": 33}, {"KS": 1, "D": 2, "unroll": 3}, {"KS": 32, "NT": 4}):
        with pytest.raises(AssertionError):
            GemvConfig(**wrong)
