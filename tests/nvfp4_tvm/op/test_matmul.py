import numpy as np
import pytest
import tvm
from relax_modules import (
    HALF_ULP,
    NUMPY,
    Weight,
    activations,
    assert_rounded_once,
    build_function,
    symbolic,
    tensor,
)
from tvm import relax

from nvfp4_tvm import layout, op
from nvfp4_tvm.errors import ShapeError
from nvfp4_tvm.op.matmul import operands, problem_of


def packed_vars(N, K):
    shapes = (layout.words_shape(N, K), layout.scales_shape(N, K), layout.global_scale_shape(N))
    dtypes = ("uint32", "uint32", "float32")
    return [
        relax.Var(f"p{i}", relax.TensorType(s, d))
        for i, (s, d) in enumerate(zip(shapes, dtypes, strict=True))
    ]


@pytest.mark.parametrize("leading", [(), (3,), (2, 5), (1, 2, 3)])
@pytest.mark.parametrize(
    ("x_dtype", "out_dtype"), [("float32", "float32"), ("float16", "float32"), ("bfloat16", "bfloat16")]
)
@pytest.mark.parametrize("bias", [False, True])
def test_legalized_matmul_is_exact(leading, x_dtype, out_dtype, bias):
    N, K = 24, 144
    rng = np.random.default_rng(len(leading))
    weight = Weight.random(rng, N, K)
    packed = layout.pack(*weight.arrays())
    x = activations(rng, (*leading, K), x_dtype)
    b = activations(rng, (N,), x_dtype)
    inputs = [
        relax.Var("x", relax.TensorType((*(symbolic(f"d{i}") for i in range(len(leading))), K), x_dtype))
    ]
    inputs += packed_vars(N, K) + ([relax.Var("bias", relax.TensorType((N,), x_dtype))] if bias else [])
    mod = build_function(inputs, lambda bb: bb.emit(op.matmul(*inputs, N=N, out_dtype=out_dtype))).get()
    machine = relax.VirtualMachine(tvm.compile(mod, target="llvm"), tvm.cpu())
    arrays = [x, packed.words, packed.scales, packed.global_scale] + ([b] if bias else [])
    found = machine["main"](*map(tensor, arrays)).numpy()
    assert str(found.dtype) == out_dtype
    assert_rounded_once(found, x, weight, b if bias else None)


@pytest.mark.parametrize(
    ("x", "N", "packed", "match"),
    [
        (
            ((2, 48), "float32"),
            8,
            (8, 192),
            r"words has shape \[1, 2, 2, 32, 4\], expected \[1, 1, 2, 32, 4\]",
        ),
        (
            ((2, 64), "float32"),
            24,
            (8, 64),
            r"words has shape \[1, 1, 2, 32, 4\], expected \[2, 1, 2, 32, 4\]",
        ),
        (((2, 24), "float32"), 8, (8, 64), "K must be a positive multiple of 16"),
        (((2, 64), "int8"), 8, (8, 64), "x is .*int8"),
        (((), "float32"), 8, (8, 64), r"x is .*, expected a tensor \[..., K\]"),
    ],
)
def test_refusals(x, N, packed, match):
    x = relax.Var("x", relax.TensorType(*x))
    with pytest.raises(ShapeError, match=match):
        relax.BlockBuilder().normalize(op.matmul(x, *packed_vars(*packed), N=N))


def test_symbolic_k_is_refused():
    x = relax.Var("x", relax.TensorType((2, symbolic("k")), "float32"))
    with pytest.raises(ShapeError, match=r"expected a tensor \[..., K\] with a constant K"):
        relax.BlockBuilder().normalize(op.matmul(x, *packed_vars(8, 64), N=8))


@pytest.mark.parametrize(("shape", "dtype"), [((9,), "float32"), ((8,), "float16")])
def test_wrong_bias_is_refused(shape, dtype):
    x = relax.Var("x", relax.TensorType((2, 64), "float32"))
    bias = relax.Var("bias", relax.TensorType(shape, dtype))
    with pytest.raises(ShapeError, match="bias"):
        relax.BlockBuilder().normalize(op.matmul(x, *packed_vars(8, 64), bias, N=8))


def gated(product):
    """``silu(gate) * up`` of products of interleaved rows, in float64."""
    j = np.arange(product.shape[-1] // 2)
    gate, up = product[..., j // 8 * 16 + j % 8], product[..., j // 8 * 16 + j % 8 + 8]
    return gate / (1 + np.exp(-gate)) * up


@pytest.mark.parametrize(
    ("leading", "out_dtype"), [((), "float32"), ((3,), "float16"), ((1, 2, 3), "bfloat16")]
)
@pytest.mark.parametrize("activation", [None, "silu_mul"])
@pytest.mark.parametrize(("bias", "residual"), [(True, True), (False, True), (True, False)])
def test_legalized_epilogue_is_rounded_once(leading, activation, bias, residual, out_dtype):
    N, K = 48, 32
    rng = np.random.default_rng(len(leading))
    weight = Weight.random(rng, N, K)
    weight.rows[:] = 1e-3
    packed = layout.pack(*weight.arrays())
    out_N = N if activation is None else N // 2
    arrays = {"x": rng.standard_normal((*leading, K)).astype(NUMPY["bfloat16"])}
    arrays |= {field: getattr(packed, field) for field in ("words", "scales", "global_scale")}
    if bias:
        arrays["bias"] = rng.standard_normal(N).astype(NUMPY["bfloat16"])
    if residual:
        arrays["residual"] = rng.standard_normal((*leading, out_N)).astype(NUMPY[out_dtype])
    inputs = {name: relax.Var(name, relax.TensorType(a.shape, str(a.dtype))) for name, a in arrays.items()}
    mod = build_function(
        list(inputs.values()),
        lambda b: b.emit(op.matmul(**inputs, N=N, out_dtype=out_dtype, activation=activation)),
    ).get()
    machine = relax.VirtualMachine(tvm.compile(mod, target="llvm"), tvm.cpu())
    found = machine["main"](*map(tensor, arrays.values())).numpy()
    exact = {name: np.asarray(a, np.float64) for name, a in arrays.items()}
    expected = exact["x"] @ weight.exact().T + exact.get("bias", 0.0)
    expected = (expected if activation is None else gated(expected)) + exact.get("residual", 0.0)
    assert str(found.dtype) == out_dtype and found.shape == expected.shape
    # fp32: sums of 32 products and an exponential, relative to values of about 1
    slack = 2.0**-18 * (np.abs(expected) + 1)
    error = np.abs(np.asarray(found, np.float64) - expected)
    assert (error <= HALF_ULP[out_dtype] * np.abs(expected) + slack).all()


@pytest.mark.parametrize(
    ("residual", "N", "activation", "match"),
    [
        (((2, 47), "float32"), 48, None, "residual is .*, expected"),
        (((2, 48), "float16"), 48, None, "residual is .*float16"),
        (((2, 48), "float32"), 48, "silu_mul", "residual is .*, expected"),
        (((2, 48), "float32"), 48, "relu", "activation is 'relu', expected one of None, 'silu_mul'"),
        (((2, 12), "float32"), 24, "silu_mul", "silu_mul needs whole tiles of 16 interleaved rows"),
    ],
)
def test_wrong_epilogues_are_refused(residual, N, activation, match):
    x = relax.Var("x", relax.TensorType((2, 64), "float32"))
    residual = relax.Var("residual", relax.TensorType(*residual))
    with pytest.raises(ShapeError, match=match):
        relax.BlockBuilder().normalize(
            op.matmul(x, *packed_vars(N, 64), residual=residual, N=N, activation=activation)
        )


def test_operands_are_named_by_the_attributes():
    x = relax.Var("x", relax.TensorType((2, 64), "float32"))
    residual = relax.Var("residual", relax.TensorType((2, 48), "float32"))
    call = op.matmul(x, *packed_vars(48, 64), residual=residual, N=48)
    assert list(operands(call)) == ["x", "words", "scales", "global_scale", "residual"]
    wrong = relax.Call(call.op, list(call.args)[:4], call.attrs)
    with pytest.raises(ShapeError, match="4 operands, expected x, words, scales, global_scale, residual"):
        operands(wrong)
    problem = problem_of(call)
    assert (problem.N, problem.K, problem.residual, problem.bias, problem.activation) == (
        48,
        64,
        True,
        False,
        None,
    )
