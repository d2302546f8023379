import numpy as np
import pytest
import tvm_ffi
from relax_modules import Weight, build_function, calls, linear, symbolic
from tvm import relax

from nvfp4_tvm import op
from nvfp4_tvm.passes.rewrite_matmul import RewriteNVFP4Matmul

N, K = 48, 64


@pytest.fixture
def weight():
    return Weight.random(np.random.default_rng(0), N, K)


def rewrite(builder):
    return RewriteNVFP4Matmul()(builder.get())


def x_var(dtype="float16", shape=None):
    return relax.Var("x", relax.TensorType(shape or (symbolic(), K), dtype))


def expected_matmul(inputs, x, params, *, out_dtype, bias=None):
    """The module after the pass, written out."""

    def body(b):
        packed = b.emit(op.pack(*params))
        fields = [b.emit(relax.TupleGetItem(packed, i)) for i in range(3)]
        return b.emit(op.matmul(x, *fields, bias, N=N, out_dtype=out_dtype))

    return build_function(inputs, body).get()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("out_dtype", [None, "float32"])
@pytest.mark.parametrize("axes", [None, [1, 0]])
def test_matmul(weight, dtype, out_dtype, axes):
    params, x = weight.params(), x_var(dtype)
    before = build_function([x, *params], lambda b: linear(b, x, params, out_dtype=out_dtype, axes=axes))
    after = expected_matmul([x, *params], x, params, out_dtype=out_dtype or dtype)
    assert tvm_ffi.structural_equal(rewrite(before)["main"], after["main"])


@pytest.mark.parametrize("shape", [(K,), (3, K), (2, 5, K), ("b", 1, K), ("b", "s", K), (1, 2, "s", K)])
def test_any_leading_dims(weight, shape):
    names = {}
    shape = tuple(names.setdefault(e, symbolic(e)) if isinstance(e, str) else e for e in shape)
    params, x = weight.params(), x_var(shape=shape)
    after = rewrite(build_function([x, *params], lambda b: linear(b, x, params)))
    assert tvm_ffi.structural_equal(
        after["main"], expected_matmul([x, *params], x, params, out_dtype="float16")["main"]
    )


def test_cast_between_dequantize_and_transpose(weight):
    params, x = weight.params(), x_var("bfloat16")
    before = build_function([x, *params], lambda b: linear(b, x, params, dtype="float32", cast="bfloat16"))
    after = expected_matmul([x, *params], x, params, out_dtype="bfloat16")
    assert tvm_ffi.structural_equal(rewrite(before)["main"], after["main"])


@pytest.mark.parametrize("swapped", [False, True])
def test_bias_is_fused(weight, swapped):
    params, x = weight.params(), x_var()
    bias = relax.Var("bias", relax.TensorType((N,), "float16"))

    def body(b):
        y = linear(b, x, params)
        return b.emit(relax.op.add(bias, y) if swapped else relax.op.add(y, bias))

    after = rewrite(build_function([x, *params, bias], body))
    expected = expected_matmul([x, *params, bias], x, params, out_dtype="float16", bias=bias)
    assert tvm_ffi.structural_equal(after["main"], expected["main"])


def test_bias_is_not_fused_when_the_product_is_used_elsewhere(weight):
    params, x = weight.params(), x_var()
    bias = relax.Var("bias", relax.TensorType((N,), "float16"))

    def body(b):
        y = linear(b, x, params)
        return b.emit(relax.Tuple([y, b.emit(relax.op.add(y, bias))]))

    after = rewrite(build_function([x, *params, bias], body))["main"]
    assert [name for name in calls(after) if name in ("relax.add", "nvfp4.matmul")] == [
        "nvfp4.matmul",
        "relax.add",
    ]


@pytest.mark.parametrize("shape", [(1,), ("m", N)])
def test_a_residual_is_no_bias(weight, shape):
    params, m = weight.params(), symbolic()
    x = x_var(shape=(m, K))
    other = relax.Var("other", relax.TensorType(tuple(m if e == "m" else e for e in shape), "float16"))

    def body(b):
        return b.emit(relax.op.add(linear(b, x, params), other))

    assert "relax.add" in calls(rewrite(build_function([x, *params, other], body))["main"])


def test_shared_weight_is_packed_once(weight):
    params, x = weight.params(), x_var()

    def body(b):
        return b.emit(relax.op.add(linear(b, x, params), b.emit(relax.op.multiply(x2(b), x2(b)))))

    def x2(b):
        return linear(b, x, params)

    names = calls(rewrite(build_function([x, *params], body))["main"])
    assert names.count("nvfp4.pack") == 1
    assert "nvfp4.dequantize" not in names


def test_tied_embedding_reads_the_packed_table(weight):
    params = weight.params()
    ids = relax.Var("ids", relax.TensorType((1, symbolic("s")), "int32"))

    def body(b):
        table = b.emit(op.dequantize(*params, "float16"))
        rows = b.emit(relax.op.take(table, ids, axis=0))
        return b.emit(relax.op.matmul(rows, b.emit(relax.op.permute_dims(table))))

    names = calls(rewrite(build_function([ids, *params], body))["main"])
    assert names == ["nvfp4.pack", "nvfp4.take", "nvfp4.matmul"]


def test_a_take_that_must_not_clip_dequantizes(weight):
    params = weight.params()
    ids = relax.Var("ids", relax.TensorType((symbolic("s"),), "int32"))

    def body(b):
        table = b.emit(op.dequantize(*params, "float16"))
        rows = b.emit(relax.op.take(table, ids, axis=0, mode="wrap"))
        return b.emit(relax.op.matmul(rows, b.emit(relax.op.permute_dims(table))))

    names = calls(rewrite(build_function([ids, *params], body))["main"])
    assert "nvfp4.take" not in names and "nvfp4.dequantize_packed" in names and "relax.take" in names


def test_tied_embedding_across_functions(weight):
    x = x_var()
    ids = relax.Var("ids", relax.TensorType((symbolic("s"),), "int32"))
    first, second = weight.params(), weight.params()
    builder = build_function([x, *first], lambda b: linear(b, x, first), name="head", num_input=1)

    def embed(b):
        return b.emit(relax.op.take(b.emit(op.dequantize(*second, "float16")), ids, axis=0))

    build_function([ids, *second], embed, name="embed", num_input=1, builder=builder)
    assert calls(rewrite(builder)["embed"]) == ["nvfp4.pack", "nvfp4.take"]


def test_other_uses_of_a_packed_weight_read_it_too(weight):
    params, x = weight.params(), x_var()

    def body(b):
        norm = b.emit(relax.op.sum(b.emit(op.dequantize(*params, "float16"))))
        return b.emit(relax.op.multiply(linear(b, x, params), norm))

    names = calls(rewrite(build_function([x, *params], body))["main"])
    assert "nvfp4.dequantize_packed" in names and "nvfp4.dequantize" not in names


@pytest.mark.parametrize(
    "body",
    [
        lambda b, x, params: b.emit(relax.op.matmul(x, b.emit(op.dequantize(*params, "float16")))),
        lambda b, x, params: b.emit(relax.op.sum(b.emit(op.dequantize(*params, "float16")))),
    ],
    ids=["not transposed", "no matmul"],
)
def test_what_is_no_linear_layer_stays(body):
    square = Weight.random(np.random.default_rng(1), K, K)
    params, x = square.params(), x_var()
    before = build_function([x, *params], lambda b: body(b, x, params)).get()
    assert tvm_ffi.structural_equal(RewriteNVFP4Matmul()(before)["main"], before["main"])


def test_the_input_module_is_left_alone(weight):
    params, x = weight.params(), x_var()
    before = build_function([x, *params], lambda b: linear(b, x, params)).get()
    text = before.script()
    RewriteNVFP4Matmul()(before)
    assert before.script() == text
