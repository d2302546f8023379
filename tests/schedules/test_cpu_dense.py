import numpy as np
import pytest
import tvm
from relax_modules import tensor

from nvfp4_tvm.schedules.cpu_dense import DenseProblem, dense
from nvfp4_tvm.target import resolve_target

LLVM = resolve_target("llvm").target


@pytest.mark.parametrize("M", [1, 2, 4, 5, 33])
@pytest.mark.parametrize("known", [True, False])
def test_only_the_output_is_written_and_all_of_it(known, M):
    N, K = 13, 40
    problem = DenseProblem(N if known else None, K, "float32", "float32")
    function = tvm.compile(tvm.IRModule({"main": dense(problem, LLVM)}), LLVM)
    rng = np.random.default_rng(M)
    x, w = rng.standard_normal((M, K), np.float32), rng.standard_normal((N, K), np.float32)
    out = tensor(np.full((M, N), np.nan, np.float32))
    function["cpu_dense"](tensor(x), tensor(w), out)
    np.testing.assert_allclose(out.numpy(), x @ w.T, rtol=1e-4, atol=1e-5)


def test_it_runs_in_parallel_on_vectors():
    text = dense(DenseProblem(64, 128, "float32", "float32"), LLVM).script()
    assert text.count("T.parallel") == 2 and "float32x" in text
