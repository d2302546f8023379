import logging

import cpu_kernels
import numpy as np
import pytest
from tvm.target import Target

from nvfp4_tvm.schedules.base import MatmulProblem, MRange
from nvfp4_tvm.schedules.cpu_gemm_amx import CHUNK_M, CPUGemmAMX
from nvfp4_tvm.schedules.intrin.amx import has_amx

AMX = CPUGemmAMX()
F32 = {"x_dtype": "float32", "out_dtype": "float32"}
needs_amx = pytest.mark.skipif(not has_amx(cpu_kernels.host()), reason="this CPU has no AMX")


@needs_amx
@pytest.mark.parametrize("x_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("N", "K"), [(1, 16), (8, 48), (24, 128), (100, 2880)])
def test_against_float64(N, K, x_dtype):
    problem = MatmulProblem(N, K, MRange(), x_dtype, "float32", bias=N % 3 == 0)
    for M in (1, 2, 3, 5, 8, 9, 17, 33, CHUNK_M[1], CHUNK_M[1] + 1, 100):
        cpu_kernels.check(AMX, problem, M, seed=M)


@needs_amx
@pytest.mark.parametrize("m_range", [MRange(5, 8), MRange(777, 777), MRange(9, 1000)], ids=str)
def test_ranges(m_range):
    cpu_kernels.check(AMX, MatmulProblem(24, 256, m_range, **F32), min(m_range.high, 777), seed=3)


@needs_amx
@pytest.mark.parametrize("x_dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("out_dtype", ["float32", "float16", "bfloat16"])
def test_dtypes(x_dtype, out_dtype):
    problem = MatmulProblem(1024, 144, MRange(9), x_dtype, out_dtype, bias=True)
    cpu_kernels.check(AMX, problem, 17, seed=0)
    cpu_kernels.check(AMX, problem, 17, seed=1, outliers=False)


@needs_amx
@pytest.mark.parametrize("x_dtype", ["float32", "float16", "bfloat16"])
def test_terms_hold_every_bit_of_an_activation(x_dtype):
    """One activation times one weight of 1 gives back the activation, bit for bit."""
    K = 16
    weight = cpu_kernels.layout.pack(
        np.eye(16, K, dtype=np.uint8)[:, 0::2] * 2 + np.eye(16, K, dtype=np.uint8)[:, 1::2] * 32,
        np.full((16, 1), 0x38, np.uint8),  # E4M3 1.0
        1.0,
    )
    assert (cpu_kernels.exact(weight) == np.eye(16)).all()
    mantissas = np.random.default_rng().uniform(1, 2, (100, K))
    x = (mantissas * 2.0 ** np.arange(-8, 8)).astype(x_dtype)
    kernel = cpu_kernels.compiled(AMX, MatmulProblem(16, K, MRange(), x_dtype, "float32"))
    np.testing.assert_array_equal(cpu_kernels.run(kernel, x, weight, None, "float32"), x.astype(np.float32))


@needs_amx
def test_same_bits_every_time():
    rng = np.random.default_rng()
    kernel = cpu_kernels.compiled(AMX, MatmulProblem(100, 2880, MRange(), **F32))
    weight = cpu_kernels.random_weight(rng, 100, 2880)
    x = cpu_kernels.random_activations(rng, 17, 2880, "float32")
    first, second = (cpu_kernels.run(kernel, x, weight, None, "float32") for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ({"kind": "cuda", "arch": "sm_80"}, "the target is cuda, not llvm"),
        ({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "skylake-avx512"}, "the target has no AMX"),
        (
            {
                "kind": "llvm",
                "mtriple": "x86_64-linux-gnu",
                "mcpu": "sapphirerapids",
                "mattr": ["-avx512f"],
            },
            "the target has no AVX-512",
        ),
    ],
)
def test_refuses(target, why, caplog):
    with caplog.at_level(logging.DEBUG):
        assert AMX.apply(MatmulProblem(16, 16), Target(target)) is None
    assert why in caplog.text
