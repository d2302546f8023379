import numpy as np
import pytest
import tvm
from relax_modules import Weight, tensor
from tvm import relax

from nvfp4_tvm import layout, op
from nvfp4_tvm.errors import ShapeError
from nvfp4_tvm.op.pack import repack


@pytest.mark.parametrize(("N", "K"), [(1, 16), (8, 48), (17, 144), (100, 2880), (64, 256)])
@pytest.mark.parametrize("scale_shape", ["scalar", "one", "rows"])
def test_tir_repack_equals_numpy_repack(N, K, scale_shape):
    weight = Weight.random(np.random.default_rng(N * K), N, K)
    global_scale = {"scalar": weight.rows[0].reshape(()), "one": weight.rows[:1], "rows": weight.rows}[
        scale_shape
    ]
    function = tvm.compile(tvm.IRModule({"main": repack(N, K, global_scale.shape)}), target="llvm")
    expected = layout.pack(weight.codes, weight.scales, global_scale)
    arrays = (expected.words, expected.scales, expected.global_scale)
    outputs = [tensor(np.full_like(array, 0xAA)) for array in arrays]
    function["main"](tensor(weight.codes), tensor(weight.scales), tensor(global_scale), *outputs)
    for found, array in zip(outputs, arrays, strict=True):
        assert found.numpy().tobytes() == array.tobytes()


def _vars(codes=((8, 16), "uint8"), scales=((8, 2), "uint8"), global_scale=((1,), "float32")):
    return [
        relax.Var(name, relax.TensorType(shape, dtype))
        for name, (shape, dtype) in (("codes", codes), ("scales", scales), ("global_scale", global_scale))
    ]


def test_inferred_type():
    builder = relax.BlockBuilder()
    ty = builder.normalize(op.pack(*_vars())).ty
    assert [tuple(int(e) for e in field.shape) for field in ty.fields] == [
        layout.words_shape(8, 32),
        layout.scales_shape(8, 32),
        layout.global_scale_shape(8),
    ]
    assert [str(field.dtype) for field in ty.fields] == ["uint32", "uint32", "float32"]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"codes": ((8, 16), "int8")}, "codes is .*int8.*expected a uint8"),
        ({"codes": ((8, 12), "uint8")}, "K must be a positive multiple of 16"),
        ({"scales": ((8, 3), "uint8")}, r"scales have shape \[8, 3\], expected \[8, 2\]"),
        ({"global_scale": ((2,), "float32")}, r"global_scale has shape \[2\], expected \[\], \[1\] or \[8\]"),
    ],
)
def test_refusals(arguments, match):
    with pytest.raises(ShapeError, match=match):
        relax.BlockBuilder().normalize(op.pack(*_vars(**arguments)))
