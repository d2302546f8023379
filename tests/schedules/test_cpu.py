import itertools

import cpu_kernels
import numpy as np
import pytest
import tvm
from relax_modules import NUMPY, Weight, activations, assert_rounded_once, tensor

from nvfp4_tvm import layout
from nvfp4_tvm.schedules.base import MatmulProblem, first_match
from nvfp4_tvm.schedules.cpu import CPU_TABLE
from nvfp4_tvm.schedules.dispatch import dispatch


def test_ranges_follow_each_other_and_have_no_end():
    assert CPU_TABLE[0][0].low == 1
    for (before, _), (after, _) in itertools.pairwise(CPU_TABLE):
        assert after.low == before.high + 1
    assert CPU_TABLE[-1][0].high is None


def test_every_range_has_a_kernel():
    for m_range, rules in CPU_TABLE:
        assert first_match(rules, MatmulProblem(24, 48, m_range), cpu_kernels.host()) is not None


@pytest.mark.parametrize(
    ("N", "K", "dtype"), [(20, 32, "float32"), (16, 128, "bfloat16"), (7, 272, "float16")]
)
def test_the_whole_table_in_one_function(N, K, dtype):
    """Kernels of one function may share scratch memory: small ones do, which once failed to build."""
    rng = np.random.default_rng(N)
    weight = Weight.random(rng, N, K)
    weight.rows[:] *= np.float32(1e-6)  # results within float16
    packed = layout.pack(*weight.arrays())
    kernel = dispatch(MatmulProblem(N, K, x_dtype=dtype, out_dtype=dtype), cpu_kernels.host())
    module = tvm.IRModule({"main": kernel.with_attr("global_symbol", "main")})
    function = tvm.compile(module, cpu_kernels.host())["main"]
    for M in (1, 2, 3, 6, 17, 100):
        x = activations(rng, (M, K), dtype)
        out = tensor(np.full((M, N), np.nan).astype(NUMPY[dtype]))
        function(tensor(x), *map(tensor, (packed.words, packed.scales, packed.global_scale)), out)
        assert_rounded_once(out.numpy(), x, weight)
