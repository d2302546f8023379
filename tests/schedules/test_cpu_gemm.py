import logging

import cpu_kernels
import numpy as np
import pytest
from tvm.target import Target

from nvfp4_tvm.schedules.base import MatmulProblem, MRange
from nvfp4_tvm.schedules.cpu_gemm import CHUNK_M, CPUGemm

GEMM = CPUGemm()
F32 = {"x_dtype": "float32", "out_dtype": "float32"}


@pytest.mark.parametrize(("N", "K"), [(1, 16), (8, 48), (24, 128), (100, 2880), (256, 48)])
def test_against_float64(N, K):
    problem = MatmulProblem(N, K, MRange(), bias=N % 3 == 0, **F32)
    for M in (1, 2, 3, 5, 8, 9, 17, 33, CHUNK_M, CHUNK_M + 1, 100):
        cpu_kernels.check(GEMM, problem, M, seed=M)


@pytest.mark.parametrize("m_range", [MRange(9), MRange(777, 777), MRange(9, 1000)], ids=str)
def test_many_rows(m_range):
    cpu_kernels.check(GEMM, MatmulProblem(24, 256, m_range, **F32), 777, seed=3)


@pytest.mark.parametrize("x_dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("out_dtype", ["float32", "float16", "bfloat16"])
def test_dtypes(x_dtype, out_dtype):
    problem = MatmulProblem(1024, 144, MRange(9), x_dtype, out_dtype, bias=True)
    cpu_kernels.check(GEMM, problem, 17, seed=0)
    cpu_kernels.check(GEMM, problem, 17, seed=1, outliers=False)


@pytest.mark.parametrize("mcpu", ["x86-64", "haswell"])
def test_forms_for_older_processors(mcpu):
    if not str(cpu_kernels.host().attrs["mtriple"]).startswith("x86_64"):
        pytest.skip("needs an x86-64 processor")
    for x_dtype in ("float32", "bfloat16"):
        problem = MatmulProblem(24, 144, MRange(9), x_dtype, "float32")
        cpu_kernels.check(GEMM, problem, 33, seed=1, target=mcpu)


def test_same_bits_every_time():
    rng = np.random.default_rng()
    kernel = cpu_kernels.compiled(GEMM, MatmulProblem(100, 2880, MRange(), **F32))
    weight = cpu_kernels.random_weight(rng, 100, 2880)
    x = cpu_kernels.random_activations(rng, 17, 2880, "float32")
    first, second = (cpu_kernels.run(kernel, x, weight, None, "float32") for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_refuses_other_targets(caplog):
    with caplog.at_level(logging.DEBUG):
        assert GEMM.apply(MatmulProblem(16, 16), Target({"kind": "cuda", "arch": "sm_80"})) is None
    assert "the target is cuda, not llvm" in caplog.text
