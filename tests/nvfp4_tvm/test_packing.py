import numpy as np
import pytest
import tvm
from relax_modules import Weight, build_function, linear, symbolic
from tvm import relax
from tvm_ffi.registry import list_global_func_names

from nvfp4_tvm import layout
from nvfp4_tvm.packing import build_transform, run_transform, split_transform
from nvfp4_tvm.passes.pipeline import weight_passes
from nvfp4_tvm.target import resolve_target


@pytest.fixture(scope="module")
def folded():
    """A model of two NVFP4 weights around a plain one, folded."""
    rng = np.random.default_rng(0)
    weights = {"a": Weight.random(rng, 40, 144), "b": Weight.random(rng, 24, 144)}
    plain = rng.standard_normal((8, 144)).astype(np.float32)
    x = relax.Var("x", relax.TensorType((symbolic(), 144), "float32"))
    a, b = (weights[name].params(name) for name in "ab")
    p = relax.Var("plain", relax.TensorType(plain.shape, "float32"))

    def body(builder):
        third = builder.emit(relax.op.matmul(x, builder.emit(relax.op.permute_dims(p))))
        return builder.emit(relax.Tuple([linear(builder, x, a), linear(builder, x, b), third]))

    mod = tvm.transform.Sequential(weight_passes())(build_function([x, *a, p, *b], body, num_input=1).get())
    canonical = [*weights["a"].arrays(), plain, *weights["b"].arrays()]
    expected = []
    for array in (weights["a"], plain, weights["b"]):
        packed = layout.pack(*array.arrays()) if isinstance(array, Weight) else None
        expected += [array] if packed is None else [packed.words, packed.scales, packed.global_scale]
    return mod, canonical, expected


def test_split_separates_the_transform(folded):
    model, transform = split_transform(folded[0])
    assert [gvar.name_hint for gvar in model.get_global_vars()] == ["main"]
    assert [gvar.name_hint for gvar in transform.get_global_vars()] == ["transform_params"]


def test_split_without_a_transform():
    x = relax.Var("x", relax.TensorType((2,), "float32"))
    mod = build_function([x], lambda b: b.emit(relax.op.add(x, x))).get()
    assert split_transform(mod) == (mod, None)


def test_parameters_stream_through_the_transform(folded):
    mod, canonical, expected = folded
    executable = build_transform(split_transform(mod)[1], resolve_target("llvm").target)
    events, found = [], {}

    def get(index):
        events.append(("get", index))
        return canonical[index]

    def put(index, value):
        events.append(("put", index))
        found[index] = value.copy()

    before = set(list_global_func_names())
    run_transform(executable, get, put)
    assert set(list_global_func_names()) == before
    assert sorted(found) == list(range(len(expected)))
    for index, array in enumerate(expected):
        np.testing.assert_array_equal(found[index], array)
    # Streaming: the first weight is written before the second is read.
    assert events.index(("put", 0)) < events.index(("get", 4))
    assert sorted(index for kind, index in events if kind == "get") == list(range(len(canonical)))


def test_an_error_while_reading_comes_out(folded):
    executable = build_transform(split_transform(folded[0])[1], resolve_target("llvm").target)

    def fail(index):
        raise OSError("the disk is gone")

    with pytest.raises(Exception, match="the disk is gone"):
        run_transform(executable, fail, lambda index, value: None)
    assert "get_item" not in list_global_func_names()
