import numpy as np
import pytest
from cuda_on_host import on_host
from dense_reference import assert_right
from relax_modules import NUMPY

from nvfp4_tvm.arch import MAX_THREADS_PER_BLOCK
from nvfp4_tvm.schedules.dense import dense_kernel
from nvfp4_tvm.schedules.dense_kernel import DenseConfig
from nvfp4_tvm.schedules.dense_problem import DenseProblem
from nvfp4_tvm.target import cuda_target


@pytest.mark.parametrize(
    ("N", "K", "M", "config"),
    [
        (16, 64, 8, DenseConfig(1, 1, 1, 1)),
        (1, 8, 1, DenseConfig(1, 1, 1, 2)),
        (20, 72, 3, DenseConfig(2, 1, 1, 1)),
        (40, 456, 11, DenseConfig(3, 2, 2, 2)),
        (33, 320, 17, DenseConfig(2, 2, 1, 3)),
        (70, 200, 37, DenseConfig(2, 4, 2, 1)),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("dtype", "out_dtype", "known"),
    [("bfloat16", "bfloat16", True), ("float16", "float32", True), ("bfloat16", "float32", False)],
)
def test_the_product_is_right(N, K, M, config, dtype, out_dtype, known):
    (launch,) = dense_kernel(DenseProblem(N if known else None, K, dtype, out_dtype), config).launches
    assert launch.arguments == ("x", "weight", "out")
    run = on_host(launch, cuda_target("sm_80").target)
    rng = np.random.default_rng(N + K + M)
    x, weight = (rng.standard_normal(shape).astype(NUMPY[dtype]) for shape in ((M, K), (N, K)))
    found = run(x, weight, np.full((M, N), np.nan).astype(NUMPY[out_dtype]))[-1]
    assert_right(found, x, weight, out_dtype)


def test_what_no_block_can_be():
    with pytest.raises(AssertionError):
        DenseConfig(MAX_THREADS_PER_BLOCK // 32 + 1, 1, 1, 1)
    with pytest.raises(AssertionError):
        DenseConfig(16, 8, 1, 1)  # partial sums: 64 KiB
    with pytest.raises(AssertionError):
        DenseConfig(1, 1, 1, 0)
