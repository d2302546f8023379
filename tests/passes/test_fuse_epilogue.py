import numpy as np
import pytest
import tvm
from relax_modules import (
    HALF_ULP,
    NUMPY,
    Weight,
    build_function,
    calls,
    linear,
    relative_error,
    symbolic,
    tensor,
)
from tvm import relax

from nvfp4_tvm.op.matmul import operands
from nvfp4_tvm.passes.fold_weights import FoldNVFP4Weights
from nvfp4_tvm.passes.fuse_epilogue import FuseNVFP4Epilogue, interleaved
from nvfp4_tvm.passes.rewrite_matmul import RewriteNVFP4Matmul, is_call
from nvfp4_tvm.target import resolve_target

CUDA = resolve_target("cuda:sm_89").target
LLVM = resolve_target("llvm").target
K, N = 64, 96


@pytest.fixture
def weight():
    weight = Weight.random(np.random.default_rng(0), N, K)
    weight.rows[:] = np.linspace(1e-4, 1e-3, N, dtype=np.float32)
    return weight


def fuse(mod, target=CUDA):
    return FuseNVFP4Epilogue(target)(RewriteNVFP4Matmul()(mod))


def products(mod, name="main"):
    return [
        binding.value
        for block in mod[name].body.blocks
        for binding in block.bindings
        if is_call(binding.value, "nvfp4.matmul")
    ]


def attributes(call):
    return {name: call.attrs[name] for name in ("out_dtype", "activation", "bias", "residual")}


def run(mod, *arrays):
    """Run on the CPU: the operator's legalization is the definition of the fused one."""
    machine = relax.VirtualMachine(tvm.compile(mod, target=LLVM), tvm.cpu())
    return machine["main"](*map(tensor, arrays)).numpy()


def x_var(dtype="bfloat16"):
    return relax.Var("x", relax.TensorType((1, symbolic("s"), K), dtype))


def x_array(dtype="bfloat16", rows=5):
    return np.random.default_rng(rows).standard_normal((1, rows, K)).astype(NUMPY[dtype])


def halves(b, p, how):
    if how == "split":
        both = b.emit(relax.op.split(p, 2, axis=-1))
    elif how == "split at":
        both = b.emit(relax.op.split(p, [N // 2], axis=2))
    else:
        return [b.emit(relax.op.strided_slice(p, [-1], [begin], [begin + N // 2])) for begin in (0, N // 2)]
    return [b.emit(relax.TupleGetItem(both, i)) for i in (0, 1)]


def gate_up(weights, dtype="bfloat16", how="split", cast="float32", swapped=False, extra=None):
    """``silu(gate) * up`` as models write it."""
    x = x_var(dtype)

    def body(b):
        p = linear(b, x, weights)
        gate, up = halves(b, p, how)
        if swapped:
            gate, up = up, gate
        if cast:
            gate, up = (b.emit(relax.op.astype(half, cast)) for half in (gate, up))
        silu = b.emit(relax.op.nn.silu(gate))
        y = b.emit(relax.op.multiply(up, silu) if how == "split at" else relax.op.multiply(silu, up))
        y = b.emit(relax.op.astype(y, dtype)) if cast else y
        return y if extra is None else b.emit(relax.Tuple([y, extra(b, x, p, gate)]))

    return [x], body


def expected_gate_up(x, weight):
    product = np.asarray(x, np.float64) @ weight.exact().T
    gate, up = np.split(product, 2, axis=-1)
    return gate / (1 + np.exp(-gate)) * up


def assert_rounded(found, expected):
    slack = 2.0**-18 * (np.abs(expected) + 1)
    error = np.abs(np.asarray(found, np.float64) - expected)
    assert (error <= HALF_ULP[str(found.dtype)] * np.abs(expected) + slack).all()


@pytest.mark.parametrize("how", ["split", "split at", "slices"])
@pytest.mark.parametrize("cast", [None, "float32"])
@pytest.mark.parametrize("where", ["constants", "parameters"])
def test_silu_mul(weight, how, cast, where):
    weights = weight.constants() if where == "constants" else weight.params()
    inputs, body = gate_up(weights, how=how, cast=cast)
    parameters = [] if where == "constants" else weights
    mod = fuse(build_function([*inputs, *parameters], body, num_input=1).get())
    (product,) = products(mod)
    assert attributes(product) == {
        "out_dtype": "bfloat16", "activation": "silu_mul", "bias": False, "residual": False,
    }  # fmt: skip
    assert calls(mod["main"])[-1] == "nvfp4.matmul"
    folded = FoldNVFP4Weights()(mod)
    assert "nvfp4.pack" not in calls(folded["main"]) and "relax.permute_dims" not in calls(folded["main"])
    x = x_array()
    arrays = [] if where == "constants" else weight.arrays()
    assert_rounded(run(mod, x, *arrays), expected_gate_up(x, weight))


def test_lifted_weights_are_interleaved_once_for_all_functions(weight):
    builder = relax.BlockBuilder()
    for name in ("prefill", "decode"):
        weights = weight.params("gate_up")
        inputs, body = gate_up(weights)
        build_function([*inputs, *weights], body, name=name, num_input=1, builder=builder)
    mod = FoldNVFP4Weights()(fuse(builder.get()))
    assert all(products(mod, name)[0].attrs["activation"] == "silu_mul" for name in ("prefill", "decode"))
    assert calls(mod["transform_params"]).count("relax.permute_dims") == 3
    assert [param.name for param in mod["decode"].params[1:]] == [
        f"gate_up.packed.{field}" for field in ("words", "scales", "global_scale")
    ]


def test_one_function_that_needs_the_product_keeps_the_weight_as_it_is(weight):
    builder = relax.BlockBuilder()
    for name in ("prefill", "decode"):
        weights = weight.params("gate_up")
        inputs, body = gate_up(weights)
        if name == "decode":
            inputs = [x := x_var()]

            def body(b, x=x, weights=weights):
                return linear(b, x, weights)

        build_function([*inputs, *weights], body, name=name, num_input=1, builder=builder)
    mod = fuse(builder.get())
    assert not any(products(mod, name)[0].attrs["activation"] for name in ("prefill", "decode"))
    assert "relax.permute_dims" not in calls(mod["prefill"])


@pytest.mark.parametrize(
    "change",
    [
        {"swapped": True},
        {"extra": lambda b, x, p, gate: b.emit(relax.op.add(p, p))},
        {"extra": lambda b, x, p, gate: b.emit(relax.op.add(gate, gate))},
    ],
    ids=["up is the first half", "the product has another use", "the gate has another use"],
)
def test_what_is_not_silu_mul_stays(weight, change):
    weights = weight.constants()
    inputs, body = gate_up(weights, **change)
    mod = fuse(build_function(inputs, body).get())
    assert [product.attrs["activation"] for product in products(mod)] == [""]
    assert "relax.nn.silu" in calls(mod["main"])


def test_another_use_of_the_weight_stays_right(weight):
    weights = weight.params()
    inputs, body = gate_up(weights, extra=lambda b, x, p, gate: linear(b, x, weights))
    mod = fuse(build_function([*inputs, *weights], body, num_input=1).get())
    assert not any(product.attrs["activation"] for product in products(mod))


def test_rows_that_make_no_whole_tiles_stay():
    odd = Weight.random(np.random.default_rng(1), 24, K)
    x = x_var()

    def body(b):
        gate, up = (
            b.emit(relax.TupleGetItem(both, i))
            for both in [b.emit(relax.op.split(linear(b, x, odd.constants()), 2, axis=-1))]
            for i in (0, 1)
        )
        return b.emit(relax.op.multiply(b.emit(relax.op.nn.silu(gate)), up))

    mod = fuse(build_function([x], body).get())
    assert [product.attrs["activation"] for product in products(mod)] == [""]


@pytest.mark.parametrize("order", ["product first", "residual first"])
@pytest.mark.parametrize("cast", [None, "float32", "float16"])
def test_residual_and_cast(weight, order, cast):
    x = x_var()
    r = relax.Var("r", relax.TensorType((1, x.ty.shape[1], N), cast or "bfloat16"))

    def body(b):
        p = linear(b, x, weight.constants())
        p = b.emit(relax.op.astype(p, cast)) if cast else p
        return b.emit(relax.op.add(p, r) if order == "product first" else relax.op.add(r, p))

    mod = fuse(build_function([x, r], body).get())
    (product,) = products(mod)
    assert attributes(product) == {
        "out_dtype": cast or "bfloat16", "activation": "", "bias": False, "residual": True,
    }  # fmt: skip
    assert calls(mod["main"])[-1] == "nvfp4.matmul" and "relax.add" not in calls(mod["main"])
    xs = x_array()
    rs = np.random.default_rng(1).standard_normal((1, 5, N)).astype(NUMPY[cast or "bfloat16"])
    expected = np.asarray(xs, np.float64) @ weight.exact().T + np.asarray(rs, np.float64)
    assert_rounded(run(mod, xs, rs), expected)


def test_bias_and_residual(weight):
    x = x_var()
    bias = np.random.default_rng(2).standard_normal(N).astype(NUMPY["bfloat16"])
    r = relax.Var("r", relax.TensorType((1, x.ty.shape[1], N), "bfloat16"))

    def body(b):
        p = b.emit(relax.op.add(linear(b, x, weight.constants()), relax.const(bias)))
        return b.emit(relax.op.add(r, p))

    (product,) = products(fuse(build_function([x, r], body).get()))
    assert list(operands(product))[4:] == ["bias", "residual"]


@pytest.mark.parametrize("what", ["used twice", "another shape", "another dtype", "to int8"])
def test_what_is_no_epilogue_stays(weight, what):
    x = x_var()
    shape, dtype = (N,) if what == "another shape" else (1, x.ty.shape[1], N), "bfloat16"
    r = relax.Var("r", relax.TensorType(shape, dtype))

    def body(b):
        p = linear(b, x, weight.constants())
        if what == "to int8":
            return b.emit(relax.op.astype(p, "int8"))
        if what == "another dtype":
            return b.emit(
                relax.op.add(b.emit(relax.op.astype(p, "float64")), b.emit(relax.op.astype(r, "float64")))
            )
        y = b.emit(relax.op.add(p, r))
        return b.emit(relax.Tuple([y, p])) if what == "used twice" else y

    mod = fuse(build_function([x, r], body).get())
    (product,) = products(mod)
    expected = {"out_dtype": "bfloat16", "activation": "", "residual": False}
    found = attributes(product)
    # x @ w + r with r [N] of x's dtype is a bias, which RewriteNVFP4Matmul has fused before
    assert {name: found[name] for name in expected} == expected and found["bias"] == (what == "another shape")


def test_the_fused_result_is_closer_to_the_exact_one(weight):
    inputs, body = gate_up(weight.constants(), cast=None)
    mod = RewriteNVFP4Matmul()(build_function(inputs, body).get())
    x = x_array(rows=40)
    exact = expected_gate_up(x, weight)
    fused, unfused = (relative_error(run(m, x), exact) for m in (FuseNVFP4Epilogue(CUDA)(mod), mod))
    assert fused < 1.7e-3 < unfused


def test_other_targets_keep_their_module(weight):
    inputs, body = gate_up(weight.constants())
    mod = RewriteNVFP4Matmul()(build_function(inputs, body).get())
    assert FuseNVFP4Epilogue(LLVM)(mod).same_as(mod)


def test_interleaved_rows():
    rows = interleaved(32, np.arange(32))
    assert rows.tolist() == [*range(8), *range(16, 24), *range(8, 16), *range(24, 32)]
    assert interleaved(32, np.float32(2)) == 2 and interleaved(32, np.ones(1)).shape == (1,)
