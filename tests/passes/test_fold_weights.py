import logging

import numpy as np
import pytest
import tvm_ffi
from relax_modules import Weight, build_function, calls, linear, symbolic
from tvm import relax

from nvfp4_tvm import layout, op
from nvfp4_tvm.errors import NVFP4Error
from nvfp4_tvm.passes.fold_weights import TRANSFORM, FoldNVFP4Weights, packed_names
from nvfp4_tvm.passes.rewrite_matmul import RewriteNVFP4Matmul

N, K = 40, 144


def fold(builder):
    return FoldNVFP4Weights()(RewriteNVFP4Matmul()(builder.get()))


def model(names=("w",), plain=False, builder=None, function="main", batch="b"):
    """A function of x and weights, marked by num_input."""
    x = relax.Var("x", relax.TensorType((symbolic(batch), K), "float32"))
    weights = {
        name: Weight.random(np.random.default_rng(i), N, K).params(name) for i, name in enumerate(names)
    }
    params = [param for weight in weights.values() for param in weight]
    if plain:
        params.insert(3, relax.Var("plain.weight", relax.TensorType((N, K), "float32")))

    def body(b):
        outputs = [linear(b, x, weight) for weight in weights.values()]
        if plain:
            outputs.append(b.emit(relax.op.matmul(x, b.emit(relax.op.permute_dims(params[3])))))
        return b.emit(relax.Tuple(outputs))

    return build_function([x, *params], body, name=function, num_input=1, builder=builder)


def test_constants_are_packed_at_compile_time():
    weight = Weight.random(np.random.default_rng(0), N, K)
    x = relax.Var("x", relax.TensorType((symbolic(), K), "float32"))
    mod = fold(build_function([x], lambda b: linear(b, x, weight.constants())))
    assert TRANSFORM not in [gvar.name_hint for gvar in mod.get_global_vars()]
    assert calls(mod["main"]) == ["nvfp4.matmul"]
    (found,) = (
        binding.value.fields
        for block in mod["main"].body.blocks
        for binding in block.bindings
        if isinstance(binding.value, relax.Tuple)
    )
    expected = layout.pack(*weight.arrays())
    for constant, field in zip(found, ("words", "scales", "global_scale"), strict=True):
        np.testing.assert_array_equal(constant.value.numpy(), getattr(expected, field))


def test_weight_parameters_are_lifted():
    mod = fold(model(("a", "b"), plain=True))
    main = mod["main"]
    assert calls(main).count("nvfp4.matmul") == 2 and "nvfp4.pack" not in calls(main)
    names = [*packed_names("a.codes"), "plain.weight", *packed_names("b.codes")]
    assert [param.name for param in main.params] == ["x", *names]
    shapes = [layout.words_shape(N, K), layout.scales_shape(N, K), layout.global_scale_shape(N)]
    assert [tuple(int(e) for e in param.ty.shape) for param in main.params[1:]] == [*shapes, (N, K), *shapes]
    assert int(main.attrs["num_input"]) == 1


def test_transform_function_is_what_was_lifted():
    transform = fold(model(("a",), plain=True))[TRANSFORM]
    weight = Weight.random(np.random.default_rng(0), N, K)
    types = [param.ty for param in weight.params()] + [relax.TensorType((N, K), "float32")]
    params = relax.Var("params", relax.TupleType(types))

    def body(b):
        packed = b.emit(op.pack(*(b.emit(relax.TupleGetItem(params, i)) for i in range(3))))
        fields = [b.emit(relax.TupleGetItem(packed, i)) for i in range(3)]
        return relax.Tuple([*fields, b.emit(relax.TupleGetItem(params, 3))])

    expected = build_function([params], body, name=TRANSFORM).get()[TRANSFORM]
    assert tvm_ffi.structural_equal(transform, expected)


def test_functions_share_the_packed_parameters():
    builder = model(("a", "b"), function="prefill")
    model(("a", "b"), function="decode", builder=builder)
    mod = fold(builder)
    prefill, decode = ([param.name for param in mod[name].params[1:]] for name in ("prefill", "decode"))
    assert prefill == decode == [*packed_names("a.codes"), *packed_names("b.codes")]
    assert len(mod[TRANSFORM].ret_ty.fields) == 6


def test_no_unpacked_copy_remains():
    mod = fold(model(("a", "b"), plain=True))
    canonical = {(N, K // 2), (N, K // 16)}
    for param in mod["main"].params[1:]:
        assert tuple(int(e) for e in param.ty.shape) not in canonical


def test_concatenated_codes_are_lifted_with_their_concat():
    # A frontend that fuses q, k, v in the graph: the concat runs once too.
    x = relax.Var("x", relax.TensorType((symbolic(), K), "float32"))
    q, k = (Weight.random(np.random.default_rng(i), N, K).params(name) for i, name in enumerate("qk"))

    def body(b):
        fused = [b.emit(relax.op.concat([left, right], axis=0)) for left, right in zip(q, k, strict=True)]
        return linear(b, x, fused)

    mod = fold(build_function([x, *q, *k], body, num_input=1))
    assert calls(mod["main"]) == ["nvfp4.matmul"]
    assert calls(mod[TRANSFORM]).count("relax.concat") == 3
    assert [param.name for param in mod["main"].params] == ["x", *packed_names("q.codes")]


def test_a_canonical_parameter_with_another_use_is_kept():
    x = relax.Var("x", relax.TensorType((symbolic(), K), "float32"))
    params = Weight.random(np.random.default_rng(0), N, K).params()

    def body(b):
        return b.emit(relax.Tuple([linear(b, x, params), params[2]]))

    names = [param.name for param in fold(build_function([x, *params], body, num_input=1))["main"].params]
    assert names == ["x", *packed_names("w.codes"), "w.global_scale"]


def test_weights_that_are_inputs_are_packed_at_run_time_with_a_warning(caplog):
    x = relax.Var("x", relax.TensorType((symbolic(), K), "float32"))
    params = Weight.random(np.random.default_rng(0), N, K).params()
    with caplog.at_level(logging.WARNING):
        mod = fold(build_function([x, *params], lambda b: linear(b, x, params)))
    assert "nvfp4.pack" in calls(mod["main"])
    assert "main: nvfp4.pack of w.codes, w.scales, w.global_scale runs at every call" in caplog.text


def test_functions_that_disagree_on_weights_are_refused():
    builder = model(("a",), function="prefill")
    model(("a", "b"), function="decode", builder=builder)
    with pytest.raises(NVFP4Error, match=r"function .* takes other weight parameters"):
        fold(builder)


def test_one_parameter_that_begins_two_packed_weights_is_refused():
    # q with k, and q with v: of one shape, so that taking one for the other would go unnoticed.
    x = relax.Var("x", relax.TensorType((symbolic(), K), "float32"))
    q, k, v = (Weight.random(np.random.default_rng(i), N, K).params(name) for i, name in enumerate("qkv"))

    def body(b):
        outputs = []
        for other in (k, v):
            fused = [b.emit(relax.op.concat([a, o], axis=0)) for a, o in zip(q, other, strict=True)]
            outputs.append(linear(b, x, fused))
        return b.emit(relax.Tuple(outputs))

    with pytest.raises(NVFP4Error, match=r"q\.codes is packed in two ways"):
        fold(build_function([x, *q, *k, *v], body, num_input=1))


def test_modules_without_nvfp4_pass_unchanged():
    x = relax.Var("x", relax.TensorType((symbolic(), K), "float32"))
    before = build_function([x], lambda b: b.emit(relax.op.add(x, x))).get()
    assert tvm_ffi.structural_equal(FoldNVFP4Weights()(before)["main"], before["main"])
