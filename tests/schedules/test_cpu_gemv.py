import logging

import cpu_kernels
import numpy as np
import pytest
from tvm.target import Target

from nvfp4_tvm.schedules.base import MatmulProblem, MRange
from nvfp4_tvm.schedules.cpu_gemv import CPUGemv

GEMV = CPUGemv()
RANGES = [MRange(1, 1), MRange(2, 2), MRange(3, 4), MRange(5, 8)]
F32 = {"x_dtype": "float32", "out_dtype": "float32"}


@pytest.mark.parametrize("m_range", RANGES, ids=str)
@pytest.mark.parametrize(("N", "K"), [(1, 16), (8, 48), (24, 128), (100, 2880), (256, 48)])
def test_against_float64(N, K, m_range):
    problem = MatmulProblem(N, K, m_range, bias=N % 3 == 0, **F32)
    for M in range(m_range.low, m_range.high + 1):
        cpu_kernels.check(GEMV, problem, M, seed=M)


@pytest.mark.parametrize("x_dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("out_dtype", ["float32", "float16", "bfloat16"])
def test_dtypes(x_dtype, out_dtype):
    problem = MatmulProblem(1024, 128, MRange(5, 8), x_dtype, out_dtype, bias=True)
    cpu_kernels.check(GEMV, problem, 7, seed=0)
    cpu_kernels.check(GEMV, problem, 7, seed=1, outliers=False)


@pytest.mark.parametrize("mcpu", ["x86-64", "haswell"])
@pytest.mark.parametrize("m_range", RANGES[::3], ids=str)
def test_forms_for_older_processors(mcpu, m_range):
    if not str(cpu_kernels.host().attrs["mtriple"]).startswith("x86_64"):
        pytest.skip("needs an x86-64 processor")
    for x_dtype in ("float32", "bfloat16"):
        problem = MatmulProblem(24, 144, m_range, x_dtype, "float32")
        cpu_kernels.check(GEMV, problem, m_range.high, seed=1, target=mcpu)


def test_one_range_value_with_symbolic_M():
    cpu_kernels.check(GEMV, MatmulProblem(24, 48, MRange(1, 1), dynamic=True, **F32), 1, seed=2)


def test_same_bits_every_time():
    rng = np.random.default_rng()
    kernel = cpu_kernels.compiled(GEMV, MatmulProblem(100, 2880, MRange(1, 1), **F32))
    weight = cpu_kernels.random_weight(rng, 100, 2880)
    x = cpu_kernels.random_activations(rng, 1, 2880, "float32")
    first, second = (cpu_kernels.run(kernel, x, weight, None, "float32") for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("m_range", "target", "why"),
    [
        (MRange(1, 9), {"kind": "llvm"}, "M may exceed 8"),
        (MRange(), {"kind": "llvm"}, "M may exceed 8"),
        (MRange(1, 1), {"kind": "cuda", "arch": "sm_80"}, "the target is cuda, not llvm"),
    ],
)
def test_refuses(m_range, target, why, caplog):
    with caplog.at_level(logging.DEBUG):
        assert GEMV.apply(MatmulProblem(16, 16, m_range), Target(target)) is None
    assert why in caplog.text
