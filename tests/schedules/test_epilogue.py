"""The epilogue's expressions, run on llvm beside float64."""

import numpy as np
import pytest
import tvm
from tvm import te

from nvfp4_tvm.schedules.base import MatmulProblem
from nvfp4_tvm.schedules.epilogue import output, row_value, silu
from nvfp4_tvm.schedules.intrin.fp4_decode import EPILOGUE_FACTOR

LENGTH = 1000


def run(function, out_dtype, *arrays):
    inputs = [te.placeholder((LENGTH,), str(array.dtype), name=f"a{i}") for i, array in enumerate(arrays)]
    out = te.compute((LENGTH,), lambda i: function(*(a[i] for a in inputs)))
    module = tvm.compile(te.create_prim_func([*inputs, out]), "llvm")
    found = tvm.runtime.tensor(np.full(LENGTH, np.nan).astype(out_dtype))
    module(*map(tvm.runtime.tensor, arrays), found)
    return found.numpy().astype(np.float64)


def random(seed, scale=1.0):
    return (np.random.default_rng(seed).standard_normal(LENGTH) * scale).astype(np.float32)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3])
def test_row_value(scale):
    sums, rows, bias = random(0, 10), np.abs(random(1, scale)), random(2, scale).astype(np.float16)
    exact = sums.astype(np.float64) * rows * EPILOGUE_FACTOR
    assert np.allclose(run(row_value, "float32", sums, rows), exact, rtol=2e-7, atol=0)
    size = np.abs(exact) + np.abs(bias.astype(np.float64))
    assert (np.abs(run(row_value, "float32", sums, rows, bias) - exact - bias) <= 2e-7 * size).all()


def test_silu_is_right_where_the_exponential_overflows():
    x = np.concatenate([random(3, 3)[: LENGTH - 4], np.float32([-200, -100, 0, 200])]).astype(np.float32)
    with np.errstate(over="ignore"):
        exact = x / (1 + np.exp(-x.astype(np.float64)))
    assert np.allclose(run(silu, "float32", x), exact, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("out_dtype", ["float32", "float16"])
def test_output_rounds_once_at_the_end(out_dtype):
    problem = MatmulProblem(32, 64, out_dtype=out_dtype, residual=True, activation="silu_mul")
    gate, up, residual = random(4), random(5), random(6).astype(out_dtype)
    found = run(lambda g, u, r: output(problem, g, u, r), out_dtype, gate, up, residual)
    exact = gate / (1 + np.exp(-gate.astype(np.float64))) * up + residual.astype(np.float64)
    ulp = {"float32": 2.0**-23, "float16": 2.0**-11}[out_dtype]
    assert (np.abs(found - exact) <= ulp * np.abs(exact) + 1e-6).all()
