"""``nvfp4.matmul``: activations times a packed NVFP4 weight.

``nvfp4.matmul(x[..., K], words, scales, global_scale[, bias[N]])`` returns ``out_dtype[..., N]``: products
and sums in float32, then the row's global scale, then the bias, then one rounding to ``out_dtype``.
"""

from __future__ import annotations

from tvm import relax, te, tirx

from nvfp4_tvm import layout
from nvfp4_tvm.errors import ShapeError
from nvfp4_tvm.op.registry import call, register, static_shape, tensor_type
from nvfp4_tvm.schedules.base import ACTIVATION_DTYPES
from nvfp4_tvm.schedules.intrin.decode import packed_weight

NAME = "nvfp4.matmul"


def packed_shape(
    op: str, N: int, K: int, words: relax.Expr, scales: relax.Expr, global_scale: relax.Expr
) -> None:
    """Check that three tensors are a packed weight [N, K].

    Raises
    ------
    ShapeError
        If a dtype or shape is not what the layout prescribes.
    """
    layout.check_weight(N, K, op)
    for name, expr, dtype, expected in (
        ("words", words, "uint32", layout.words_shape(N, K)),
        ("scales", scales, "uint32", layout.scales_shape(N, K)),
        ("global_scale", global_scale, "float32", layout.global_scale_shape(N)),
    ):
        found = static_shape(op, name, tensor_type(op, name, expr, (dtype,), len(expected)))
        if found != expected:
            raise ShapeError(
                f"{op}: {name} has shape {list(found)}, expected {list(expected)} for a weight [{N}, {K}] in "
                f"layout version {layout.LAYOUT_VERSION}"
            )


def _infer_type(call: relax.Call, _builder: relax.BlockBuilder) -> relax.Type:
    x, words, scales, global_scale, *bias = call.args
    N = int(call.attrs["N"])
    x_type = tensor_type(NAME, "x", x, ACTIVATION_DTYPES)
    if x_type.ndim < 1:
        raise ShapeError(f"{NAME}: x is a scalar, expected a tensor [..., K]")
    *leading, K = x_type.shape
    if not isinstance(K, tirx.IntImm):
        raise ShapeError(f"{NAME}: the last extent of x is {K}, expected a constant")
    packed_shape(NAME, N, int(K), words, scales, global_scale)
    if bias:
        shape = static_shape(NAME, "bias", tensor_type(NAME, "bias", bias[0], (str(x_type.dtype),), 1))
        if shape != (N,):
            raise ShapeError(f"{NAME}: bias has shape {list(shape)}, expected [{N}]")
    if call.attrs["out_dtype"] not in ACTIVATION_DTYPES:
        raise ShapeError(f"{NAME}: out_dtype is {call.attrs['out_dtype']}, expected {ACTIVATION_DTYPES}")
    return relax.TensorType((*leading, N), call.attrs["out_dtype"])


def te_matmul(
    x: te.Tensor,
    words: te.Tensor,
    scales: te.Tensor,
    global_scale: te.Tensor,
    bias: te.Tensor | None,
    N: int,
    out_dtype: str,
    pad_M: int = 1,
) -> te.Tensor:
    """Return the block computation of the matmul for x [M, K]: what every schedule must compute.

    With ``pad_M`` > 1 the products are computed for M rounded up to a multiple of it, from rows of zeros.
    """
    M, K = x.shape[0], int(x.shape[1])
    k = te.reduce_axis((0, K), "k")
    rows = M
    if pad_M > 1:
        rows, unpadded = (M + pad_M - 1) // pad_M * pad_M, x
        zero = tirx.const(0, str(x.dtype))
        x = te.compute(
            (rows, K), lambda m, k: tirx.if_then_else(m < M, unpadded[m, k], zero), name="x_padded"
        )
    products = te.compute(
        (rows, N),
        lambda m, n: te.sum(x[m, k].astype("float32") * packed_weight(words, scales, n, k), axis=k),
        name="matmul",
    )

    def epilogue(m: tirx.Expr, n: tirx.Expr) -> tirx.Expr:
        scaled = products[m, n] * global_scale[n]
        return (scaled if bias is None else scaled + bias[n].astype("float32")).astype(out_dtype)

    return te.compute((M, N), epilogue, name="epilogue")


def _legalize(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    N, out_dtype = int(call.attrs["N"]), call.attrs["out_dtype"]
    rows, leading = flatten(builder, call.args[0])
    has_bias = len(call.args) == 5

    def matmul(*tensors: te.Tensor) -> te.Tensor:
        x, words, scales, global_scale = tensors[:4]
        return te_matmul(x, words, scales, global_scale, tensors[4] if has_bias else None, N, out_dtype)

    out = builder.emit_te(matmul, rows, *call.args[1:], primfunc_name_hint="nvfp4_matmul")
    return unflatten(out, leading, N)


def flatten(builder: relax.BlockBuilder, x: relax.Expr) -> tuple[relax.Expr, list[tirx.Expr] | None]:
    """Emit x [..., K] as [M, K]; also return the leading extents, None if x was [M, K] already."""
    *leading, K = x.ty.shape
    if len(leading) == 1:
        return x, None
    M = tirx.const(1, "int64")
    for extent in leading:
        M = M * extent
    return builder.emit(relax.op.reshape(x, (M, K))), leading


def unflatten(out: relax.Expr, leading: list[tirx.Expr] | None, N: int) -> relax.Expr:
    """Undo :func:`flatten` on the product [M, N]."""
    return out if leading is None else relax.op.reshape(out, (*leading, tirx.const(N, "int64")))


OP = register(NAME, "Multiply activations by a packed NVFP4 weight.", -1, _infer_type, _legalize)


def matmul(
    x: relax.Expr,
    words: relax.Expr,
    scales: relax.Expr,
    global_scale: relax.Expr,
    bias: relax.Expr | None = None,
    *,
    N: int,
    out_dtype: str | None = None,
) -> relax.Call:
    """Multiply x [..., K] by a packed weight [N, K]; ``out_dtype`` defaults to that of x."""
    args = [x, words, scales, global_scale] + ([] if bias is None else [bias])
    return call(OP, args, N=N, out_dtype=str(out_dtype or x.ty.dtype))
