"""``nvfp4.matmul``: activations times a packed NVFP4 weight, and what may follow it before the one rounding.

``nvfp4.matmul(x[..., K], words, scales, global_scale[, bias[N]][, residual[..., out_N]])`` returns
``out_dtype[..., out_N]``. All of it is float32 until one rounding to ``out_dtype``: products and sums, the row's
global scale, the bias (of the dtype of x), the activation, the residual (of ``out_dtype``). With
``activation="silu_mul"`` the weight holds gate and up rows interleaved in eights
(:class:`~nvfp4_tvm.schedules.base.MatmulProblem`), and ``out_N`` is N / 2; otherwise it is N.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import tvm_ffi
from tvm import relax, te, tirx

from nvfp4_tvm import layout
from nvfp4_tvm.errors import ShapeError
from nvfp4_tvm.op.registry import call, register, static_shape, tensor_type
from nvfp4_tvm.schedules.base import ACTIVATION_DTYPES, MatmulProblem, MRange
from nvfp4_tvm.schedules.epilogue import output
from nvfp4_tvm.schedules.intrin.decode import packed_weight

NAME = "nvfp4.matmul"
#: Operands of every call, in order; ``bias`` and ``residual`` follow where the attributes say so.
OPERANDS = ("x", "words", "scales", "global_scale")


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


def operands(call: relax.Call) -> dict[str, relax.Expr]:
    """Return the operands of a call by name: `OPERANDS`, and ``bias`` and ``residual`` if it has them.

    Raises
    ------
    ShapeError
        If the number of operands is not what the attributes say.
    """
    names = [*OPERANDS, *(name for name in ("bias", "residual") if bool(call.attrs[name]))]
    if len(names) != len(call.args):
        raise ShapeError(f"{NAME}: {len(call.args)} operands, expected {', '.join(names)}")
    return dict(zip(names, call.args, strict=True))


def problem_of(call: relax.Call) -> MatmulProblem:
    """Return the problem a call poses, for any M.

    Raises
    ------
    ShapeError
        If no kernel could exist for it.
    """
    x_type = tensor_type(NAME, "x", call.args[0], ACTIVATION_DTYPES)
    K = x_type.shape[-1] if x_type.ndim else None
    if not isinstance(K, tirx.IntImm):
        raise ShapeError(f"{NAME}: x is {x_type}, expected a tensor [..., K] with a constant K")
    return MatmulProblem(
        int(call.attrs["N"]),
        int(K),
        MRange(),
        str(x_type.dtype),
        str(call.attrs["out_dtype"]),
        bias=bool(call.attrs["bias"]),
        residual=bool(call.attrs["residual"]),
        activation=str(call.attrs["activation"]) or None,
    )


def _infer_type(call: relax.Call, _builder: relax.BlockBuilder) -> relax.Type:
    named = operands(call)
    problem = problem_of(call)
    N = problem.N
    packed_shape(NAME, N, problem.K, named["words"], named["scales"], named["global_scale"])
    if "bias" in named:
        shape = static_shape(NAME, "bias", tensor_type(NAME, "bias", named["bias"], (problem.x_dtype,), 1))
        if shape != (N,):
            raise ShapeError(f"{NAME}: bias has shape {list(shape)}, expected [{N}]")
    out = relax.TensorType((*list(named["x"].ty.shape)[:-1], problem.out_N), problem.out_dtype)
    if "residual" in named and not tvm_ffi.structural_equal(named["residual"].ty.shape, out.shape):
        raise ShapeError(f"{NAME}: residual is {named['residual'].ty}, expected {out}")
    if "residual" in named:
        tensor_type(NAME, "residual", named["residual"], (problem.out_dtype,))
    return out


def gate_row(column: tirx.Expr | int) -> tirx.Expr | int:
    """Return the weight row of the gate of an output column with ``silu_mul``; its up is eight rows further."""
    return column // 8 * layout.TILE_N + column % 8


def te_matmul(problem: MatmulProblem, tensors: Mapping[str, te.Tensor], pad_M: int = 1) -> te.Tensor:
    """Return the block computation of a problem: what every schedule must compute.

    Parameters
    ----------
    problem : MatmulProblem
        The problem; its M does not matter.
    tensors : mapping of str to te.Tensor
        The operands by name; x and the residual have two dimensions.
    pad_M : int
        If above 1, the products are computed for M rounded up to a multiple of it, from rows of zeros.
    """
    x, words, scales = tensors["x"], tensors["words"], tensors["scales"]
    M, K, N = x.shape[0], problem.K, problem.N
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

    def value(m: tirx.Expr, n: tirx.Expr) -> tirx.Expr:
        scaled = products[m, n] * tensors["global_scale"][n]
        return scaled + tensors["bias"][n].astype("float32") if problem.bias else scaled

    return te_output(problem, M, value, tensors.get("residual"))


def te_output(
    problem: MatmulProblem,
    M: tirx.Expr,
    value: Callable[[tirx.Expr, tirx.Expr], tirx.Expr],
    residual: te.Tensor | None,
) -> te.Tensor:
    """Return the output [M, out_N] from ``value(m, n)``, the scaled and biased products of weight row n."""

    def epilogue(m: tirx.Expr, n: tirx.Expr) -> tirx.Expr:
        up = None if problem.activation is None else value(m, gate_row(n) + 8)
        own = value(m, n if problem.activation is None else gate_row(n))
        return output(problem, own, up, None if residual is None else residual[m, n])

    return te.compute((M, problem.out_N), epilogue, name="epilogue")


def _legalize(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    problem, named = problem_of(call), operands(call)
    leading = None
    for name in ("x", "residual"):
        if name in named:
            named[name], leading = flatten(builder, named[name])

    def matmul(*tensors: te.Tensor) -> te.Tensor:
        return te_matmul(problem, dict(zip(named, tensors, strict=True)))

    out = builder.emit_te(matmul, *named.values(), primfunc_name_hint="nvfp4_matmul")
    return unflatten(out, leading, problem.out_N)


def flatten(builder: relax.BlockBuilder, x: relax.Expr) -> tuple[relax.Expr, list[tirx.Expr] | None]:
    """Emit x [..., K] as [M, K]; also return the leading extents, None if x was [M, K] already."""
    *leading, K = x.ty.shape
    if len(leading) == 1:
        return x, None
    M = tirx.const(1, "int64")
    for extent in leading:
        M = M * extent
    return builder.emit(relax.op.reshape(x, (M, K))), leading


def unflatten(out: relax.Expr, leading: list[tirx.Expr] | None, N: tirx.Expr | int) -> relax.Expr:
    """Undo :func:`flatten` on the product [M, N]."""
    if leading is None:
        return out
    return relax.op.reshape(out, (*leading, tirx.const(N, "int64") if isinstance(N, int) else N))


OP = register(NAME, "Multiply activations by a packed NVFP4 weight.", -1, _infer_type, _legalize)


def matmul(
    x: relax.Expr,
    words: relax.Expr,
    scales: relax.Expr,
    global_scale: relax.Expr,
    bias: relax.Expr | None = None,
    residual: relax.Expr | None = None,
    *,
    N: int,
    out_dtype: str | None = None,
    activation: str | None = None,
) -> relax.Call:
    """Multiply x [..., K] by a packed weight [N, K]; see the module for the rest.

    Parameters
    ----------
    x, words, scales, global_scale, bias, residual : relax.Expr
        Operands.
    N : int
        Rows of the weight.
    out_dtype : str, optional
        Default: that of x.
    activation : {None, "silu_mul"}
        What follows the bias.
    """
    extra = [operand for operand in (bias, residual) if operand is not None]
    return call(
        OP,
        [x, words, scales, global_scale, *extra],
        N=N,
        out_dtype=str(out_dtype or x.ty.dtype),
        bias=bias is not None,
        residual=residual is not None,
        activation=activation or "",
    )
