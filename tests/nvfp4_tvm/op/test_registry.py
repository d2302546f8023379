import pytest
from relax_modules import symbolic
from tvm import relax

from nvfp4_tvm.errors import ShapeError
from nvfp4_tvm.op.registry import call, register, static_shape, tensor_type


@pytest.fixture(scope="module")
def doubled():
    """An operator that adds its argument to itself, with an attribute."""

    def infer(call, builder):
        assert call.attrs["flag"] == 7
        return call.args[0].ty

    def legalize(builder, call):
        return relax.op.add(call.args[0], call.args[0])

    return register("nvfp4.test_doubled", "For tests.", 1, infer, legalize)


def test_a_registered_operator_is_inferred_and_legalised(doubled):
    x = relax.Var("x", relax.TensorType((symbolic(), 4), "float16"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            out = builder.emit_output(builder.emit(call(doubled, [x], flag=7)))
        builder.emit_func_output(out)
    mod = builder.get()
    assert str(mod["main"].ret_ty) == str(x.ty)
    text = relax.transform.LegalizeOps()(mod).script()
    assert "nvfp4.test_doubled" not in text and "R.call_tir" in text


@pytest.mark.parametrize(
    ("ty", "match"),
    [
        (relax.TensorType((2, 3), "int8"), r"op: x is .*int8.*expected a uint8 or float32 tensor of rank 2"),
        (relax.TensorType((2,), "uint8"), "of rank 2"),
        (relax.TensorType(dtype="uint8", ndim=2), "op: x is"),
        (relax.ShapeType([2]), "op: x is"),
    ],
)
def test_tensor_type_refuses(ty, match):
    with pytest.raises(ShapeError, match=match):
        tensor_type("op", "x", relax.Var("x", ty), ("uint8", "float32"), 2)


def test_static_shape():
    assert static_shape("op", "x", relax.TensorType((2, 3), "uint8")) == (2, 3)
    with pytest.raises(ShapeError, match=r"op: x has shape .*expected constants"):
        static_shape("op", "x", relax.TensorType((symbolic(), 3), "uint8"))
