import numpy as np
import pytest
import tvm
from relax_modules import HALF_ULP, NUMPY, build_function, calls, symbolic, tensor
from tvm import relax

from nvfp4_tvm.passes.sum_in_float32 import SumInFloat32


def module(dtype, out_dtype=None, K=4096, N=8):
    x = relax.Var("x", relax.TensorType((symbolic(), K), dtype))
    w = relax.Var("w", relax.TensorType((N, K), dtype))

    def body(b):
        return b.emit(relax.op.matmul(x, b.emit(relax.op.permute_dims(w)), out_dtype=out_dtype))

    return build_function([x, w], body).get()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_long_sum_is_rounded_once(dtype):
    rng = np.random.default_rng(3)
    x, w = (rng.standard_normal(shape).astype(NUMPY[dtype]) for shape in ((3, 4096), (8, 4096)))
    exact_x, exact_w = x.astype(np.float64), w.astype(np.float64)
    expected = exact_x @ exact_w.T
    bound = HALF_ULP[dtype] * np.abs(expected) + 2.0**-24 * 64 * (np.abs(exact_x) @ np.abs(exact_w).T)
    errors = {}
    for name, mod in {"before": module(dtype), "after": SumInFloat32()(module(dtype))}.items():
        machine = relax.VirtualMachine(tvm.compile(mod, target="llvm"), tvm.cpu())
        found = machine["main"](tensor(x), tensor(w)).numpy()
        assert found.dtype == x.dtype
        errors[name] = np.abs(found.astype(np.float64) - expected)
    assert (errors["after"] <= bound * 1.01).all()
    assert (errors["before"] > 4 * bound).any()  # or TVM sums in float32 by itself now


@pytest.mark.parametrize(("dtype", "out_dtype"), [("float32", None), ("bfloat16", "float32")])
def test_wide_results_stay(dtype, out_dtype):
    before = module(dtype, out_dtype)
    assert calls(SumInFloat32()(before)["main"]) == ["relax.permute_dims", "relax.matmul"]
    tvm.ir.assert_structural_equal(SumInFloat32()(before), before)


def test_the_type_of_a_function_stays():
    before = module("bfloat16")
    after = SumInFloat32()(before)
    assert calls(after["main"]) == ["relax.permute_dims", "relax.matmul", "relax.astype"]
    tvm.ir.assert_structural_equal(after["main"].ty, before["main"].ty, map_free_vars=True)
    tvm.ir.assert_structural_equal(SumInFloat32()(after), after)
