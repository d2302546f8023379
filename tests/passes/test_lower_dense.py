import numpy as np
import pytest
import tvm
from relax_modules import HALF_ULP, NUMPY, build_function, calls, symbolic, tensor
from tvm import relax

from nvfp4_tvm import pipeline
from nvfp4_tvm.codegen import BuildLog, cuda_machine_code
from nvfp4_tvm.passes.lower_dense import LowerDense
from nvfp4_tvm.target import resolve_target

LLVM, CUDA = resolve_target("llvm").target, resolve_target("cuda:sm_89").target


def module(N, K, dtype="float32", out_dtype=None, leading=("b", "s"), uses=1):
    names = {}
    leading = tuple(names.setdefault(e, symbolic(e)) if isinstance(e, str) else e for e in leading)
    x = relax.Var("x", relax.TensorType((*leading, K), dtype))
    w = relax.Var("w", relax.TensorType((symbolic(N) if isinstance(N, str) else N, K), dtype))

    def body(b):
        product = b.emit(relax.op.matmul(x, b.emit(relax.op.permute_dims(w)), out_dtype=out_dtype))
        if uses > 1:
            transposed = b.emit(relax.op.permute_dims(w))
            return b.emit(relax.Tuple([product, transposed]))
        return product

    return build_function([x, w], body).get()


@pytest.mark.parametrize(("N", "K"), [(1, 1), (8, 16), (13, 37), (100, 130), (512, 64)])
@pytest.mark.parametrize(
    ("dtype", "out_dtype"), [("float32", None), ("bfloat16", "float32"), ("float16", "float16")]
)
@pytest.mark.parametrize("symbolic_n", [False, True])
def test_the_product_is_right(N, K, dtype, out_dtype, symbolic_n):
    mod = LowerDense(LLVM)(module("n" if symbolic_n else N, K, dtype, out_dtype))
    assert calls(mod["main"]) == ["relax.reshape", "relax.call_tir", "relax.reshape"]
    machine = relax.VirtualMachine(tvm.compile(mod, target=LLVM), tvm.cpu())
    rng = np.random.default_rng(N)
    w = rng.standard_normal((N, K)).astype(NUMPY[dtype])
    for shape in [(1, 1), (1, 3), (2, 2), (1, 17), (3, 11)]:
        x = rng.standard_normal((*shape, K)).astype(NUMPY[dtype])
        found = machine["main"](tensor(x), tensor(w)).numpy()
        assert str(found.dtype) == (out_dtype or dtype) and found.shape == (*shape, N)
        exact_x, exact_w = x.astype(np.float64), w.astype(np.float64)
        expected = exact_x @ exact_w.T
        bound = HALF_ULP[str(found.dtype)] * np.abs(expected) + 4 * np.sqrt(K) * 2.0**-24 * (
            np.abs(exact_x) @ np.abs(exact_w).T
        )
        assert (np.abs(found.astype(np.float64) - expected) <= bound * 1.01 + 1e-30).all()


def test_one_kernel_for_each_shape():
    mod = LowerDense(LLVM)(module(8, 16))
    assert [g.name_hint for g in mod.get_global_vars() if g.name_hint.startswith("dense")] == ["dense_8x16"]


def test_a_transpose_with_another_use_stays():
    assert "relax.permute_dims" in calls(LowerDense(LLVM)(module(8, 16, uses=2))["main"])


def test_what_is_no_linear_layer_stays():
    x = relax.Var("x", relax.TensorType((symbolic(), 16), "float32"))
    w = relax.Var("w", relax.TensorType((16, 8), "float32"))
    mod = LowerDense(LLVM)(build_function([x, w], lambda b: b.emit(relax.op.matmul(x, w))).get())
    assert calls(mod["main"]) == ["relax.matmul"]


@pytest.mark.parametrize("symbolic_n", [False, True])
def test_cuda_calls_machine_code(symbolic_n):
    n = symbolic("n") if symbolic_n else 100
    x = relax.Var("x", relax.TensorType((symbolic("b"), symbolic("s"), 48), "bfloat16"))
    w = relax.Var("w", relax.TensorType((n, 48), "bfloat16"))

    def body(b):
        first, second = (
            b.emit(relax.op.matmul(y, b.emit(relax.op.permute_dims(w)), out_dtype="float32")) for y in (x, x)
        )
        return b.emit(relax.op.add(first, second))

    before, log = build_function([x, w], body).get(), BuildLog()
    mod = LowerDense(CUDA, log)(before)
    called = [name for name in calls(mod["main"]) if name not in ("relax.reshape", "relax.add")]
    assert called == ["relax.call_dps_packed"] * 2
    tvm.ir.assert_structural_equal(mod["main"].ty, before["main"].ty, map_free_vars=True)
    (external,) = mod.attrs["external_mods"]
    name = f"dense_{'any' if symbolic_n else 100}x48_bfloat16_float32"
    assert external.implements_function(name) and name in mod["main"].script()
    assert log.modules and all(name in kernel for kernel in log.usage)
    with cuda_machine_code("sm_89"):
        built = relax.build(before, CUDA, relax_pipeline=pipeline(CUDA))
    assert built.mod.implements_function(name, True)


@pytest.mark.parametrize(("K", "dtype"), [(16, "float32"), (20, "bfloat16")])
def test_what_tensor_cores_do_not_take_is_left_to_dlight_and_told_once(K, dtype, caplog):
    before = module(8, K, dtype)
    with caplog.at_level("WARNING"):
        mod = LowerDense(CUDA)(before)
    assert "relax.matmul" in calls(mod["main"])
    (message,) = caplog.messages
    assert f"linear layer [8, {K}] of {dtype}: TVM's own schedule runs it" in message


def test_other_targets_are_left_alone():
    before = module(8, 16)
    assert LowerDense(tvm.target.Target("vulkan"))(before).same_as(before)
