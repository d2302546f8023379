import numpy as np
import pytest
import tvm
from relax_modules import Weight, activations, assert_rounded_once, build_function, symbolic, tensor
from tvm import relax

from nvfp4_tvm import layout, op
from nvfp4_tvm.errors import ShapeError


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
        (((), "float32"), 8, (8, 64), "x is a scalar"),
    ],
)
def test_refusals(x, N, packed, match):
    x = relax.Var("x", relax.TensorType(*x))
    with pytest.raises(ShapeError, match=match):
        relax.BlockBuilder().normalize(op.matmul(x, *packed_vars(*packed), N=N))


def test_symbolic_k_is_refused():
    x = relax.Var("x", relax.TensorType((2, symbolic("k")), "float32"))
    with pytest.raises(ShapeError, match="last extent of x is k, expected a constant"):
        relax.BlockBuilder().normalize(op.matmul(x, *packed_vars(8, 64), N=8))


@pytest.mark.parametrize(("shape", "dtype"), [((9,), "float32"), ((8,), "float16")])
def test_wrong_bias_is_refused(shape, dtype):
    x = relax.Var("x", relax.TensorType((2, 64), "float32"))
    bias = relax.Var("bias", relax.TensorType(shape, dtype))
    with pytest.raises(ShapeError, match="bias"):
        relax.BlockBuilder().normalize(op.matmul(x, *packed_vars(8, 64), bias, N=8))
