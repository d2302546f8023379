import numpy as np
import pytest
import tvm
from relax_modules import Weight, build_function, linear, symbolic
from tvm import relax

from nvfp4_tvm import op
from nvfp4_tvm.errors import NVFP4Error
from nvfp4_tvm.passes.fold_weights import FoldNVFP4Weights
from nvfp4_tvm.passes.fuse_epilogue import interleaved
from nvfp4_tvm.passes.pipeline import weight_passes
from nvfp4_tvm.passes.transform_params import PackedOutput, PlainOutput, read_transform, split_transform

K = 144


def x():
    return relax.Var("x", relax.TensorType((symbolic(), K), "float32"))


@pytest.fixture(scope="module")
def folded():
    """A model of two NVFP4 weights around a plain one."""
    rng = np.random.default_rng(0)
    a, b = (Weight.random(rng, N, K).params(name) for name, N in (("a", 40), ("b", 24)))
    data, plain = x(), relax.Var("plain", relax.TensorType((8, K), "float32"))

    def body(builder):
        third = builder.emit(relax.op.matmul(data, builder.emit(relax.op.permute_dims(plain))))
        return builder.emit(relax.Tuple([linear(builder, data, a), linear(builder, data, b), third]))

    return tvm.transform.Sequential(weight_passes())(
        build_function([data, *a, plain, *b], body, num_input=1).get()
    )


def test_split_separates_the_transform(folded):
    model, transform = split_transform(folded)
    assert [gvar.name_hint for gvar in model.get_global_vars()] == ["main"]
    assert [gvar.name_hint for gvar in transform.get_global_vars()] == ["transform_params"]


def test_split_without_a_transform():
    y = relax.Var("y", relax.TensorType((2,), "float32"))
    mod = build_function([y], lambda b: b.emit(relax.op.add(y, y))).get()
    assert split_transform(mod) == (mod, None)


def test_packed_and_plain_outputs(folded):
    assert read_transform(split_transform(folded)[1]) == [
        PackedOutput((0, 1, 2), None),
        PlainOutput(3),
        PackedOutput((4, 5, 6), None),
    ]


def gated(rows):
    """The transform of a weight whose operands ``rows`` rewrites before they are packed."""
    N = 48
    data = x()
    params = Weight.random(np.random.default_rng(0), N, K).params("w")

    def body(builder):
        packed = builder.emit(op.pack(*(rows(builder, param) for param in params)))
        fields = [builder.emit(relax.TupleGetItem(packed, i)) for i in range(3)]
        return builder.emit(op.matmul(data, *fields, N=N, out_dtype="float32"))

    mod = FoldNVFP4Weights()(build_function([data, *params], body, num_input=1).get())
    return read_transform(split_transform(mod)[1])


def test_rows_in_another_order():
    """Of gate and up, as FuseNVFP4Epilogue interleaves them."""

    def rows(builder, param):
        shape = [int(extent) for extent in param.ty.shape]
        if shape in ([], [1]):
            return param
        halves = builder.emit(relax.op.reshape(param, (2, 3, 8, *shape[1:])))
        tiles = builder.emit(relax.op.permute_dims(halves, [1, 0, 2, *range(3, len(shape) + 2)]))
        return builder.emit(relax.op.reshape(tiles, shape))

    (found,) = gated(rows)
    assert found.operands == (0, 1, 2)
    np.testing.assert_array_equal(found.order, interleaved(48, np.arange(48)))


def test_what_is_no_order_of_rows_is_refused():
    def columns(builder, param):
        shape = [int(extent) for extent in param.ty.shape]
        if len(shape) < 2:
            return param
        halves = builder.emit(relax.op.reshape(param, (shape[0], shape[1] // 3, 3)))
        return builder.emit(relax.op.reshape(builder.emit(relax.op.permute_dims(halves, [0, 2, 1])), shape))

    with pytest.raises(NVFP4Error, match=r"transform_params: found .*permute_dims.*, expected rows"):
        gated(columns)
