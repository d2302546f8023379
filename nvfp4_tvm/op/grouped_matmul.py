"""``nvfp4.grouped_matmul``: rows of activations, each times the packed NVFP4 weight of its expert.

``nvfp4.grouped_matmul(x, words[E, ...], scales[E, ...], global_scale[E, ...], indptr)`` returns
``out_dtype[M, out_N]``; the packed arrays are those of :mod:`nvfp4_tvm.layout` with a leading axis of experts. As
in ``nvfp4.matmul`` all of it is float32 until one rounding. ``indptr`` says which rows are whose
(:mod:`nvfp4_tvm.schedules.grouped`), in the forms of MLC-LLM's ``MixtralExperts``:

``int32[E + 1]``   rows of x [M, K] are sorted by expert; expert e has ``indptr[e] .. indptr[e + 1] - 1``, or none
``int32[1, k]``    the k experts of one token; x is [1, K] or [k, K], the result [k, out_N]
"""

from __future__ import annotations

from collections.abc import Mapping

from tvm import relax, te, tirx

from nvfp4_tvm import layout
from nvfp4_tvm.errors import ShapeError
from nvfp4_tvm.op.matmul import te_output
from nvfp4_tvm.op.registry import call, register, static_shape, tensor_type
from nvfp4_tvm.schedules.base import ACTIVATION_DTYPES, MRange
from nvfp4_tvm.schedules.grouped import GroupedProblem
from nvfp4_tvm.schedules.intrin.decode import packed_weight

NAME = "nvfp4.grouped_matmul"
#: Operands of a call, in order.
OPERANDS = ("x", "words", "scales", "global_scale", "indptr")


def operands(call: relax.Call) -> dict[str, relax.Expr]:
    """Return the operands of a call by name.

    Raises
    ------
    ShapeError
        If there are more or fewer.
    """
    if len(call.args) != len(OPERANDS):
        raise ShapeError(f"{NAME}: {len(call.args)} operands, expected {', '.join(OPERANDS)}")
    return dict(zip(OPERANDS, call.args, strict=True))


def problem_of(call: relax.Call) -> GroupedProblem:
    """Return the problem a call poses, for any M.

    Raises
    ------
    ShapeError
        If no kernel could exist for it.
    """
    named = operands(call)
    x = tensor_type(NAME, "x", named["x"], ACTIVATION_DTYPES, 2)
    if not isinstance(x.shape[1], tirx.IntImm):
        raise ShapeError(f"{NAME}: x is {x}, expected a tensor [M, K] with a constant K")
    words = static_shape(NAME, "words", tensor_type(NAME, "words", named["words"], ("uint32",), 6))
    indptr = tensor_type(NAME, "indptr", named["indptr"], ("int32",))
    experts, selected, shared = words[0], indptr.ndim == 2, False
    if selected:
        first, chosen = static_shape(NAME, "indptr", indptr)
        if first != 1:
            raise ShapeError(
                f"{NAME}: indptr has shape [{first}, {chosen}], expected [1, experts of the token]; sort the "
                f"rows of several tokens by expert and pass int32[{experts + 1}]"
            )
        rows = x.shape[0]
        if not isinstance(rows, tirx.IntImm) or int(rows) not in (1, chosen):
            raise ShapeError(f"{NAME}: x is {x}, expected 1 or {chosen} rows for indptr [1, {chosen}]")
        shared = int(rows) == 1
    elif indptr.ndim != 1 or static_shape(NAME, "indptr", indptr) != (experts + 1,):
        raise ShapeError(
            f"{NAME}: indptr is {indptr}, expected int32[{experts + 1}] for {experts} experts, or int32[1, k]"
        )
    return GroupedProblem(
        int(call.attrs["N"]),
        int(x.shape[1]),
        MRange(),
        str(x.dtype),
        str(call.attrs["out_dtype"]),
        activation=str(call.attrs["activation"]) or None,
        experts=experts,
        selected=selected,
        shared_x=shared,
    )


def rows_of(call: relax.Call) -> tirx.Expr:
    """Return M, the rows of the result."""
    indptr = call.args[-1].ty
    return indptr.shape[1] if indptr.ndim == 2 else call.args[0].ty.shape[0]


def _infer_type(call: relax.Call, _builder: relax.BlockBuilder) -> relax.Type:
    problem, named = problem_of(call), operands(call)
    for name, (shape, dtype) in problem.operands(1).items():
        if name not in ("words", "scales", "global_scale"):
            continue
        found = static_shape(NAME, name, tensor_type(NAME, name, named[name], (dtype,), len(shape)))
        if found != shape:
            raise ShapeError(
                f"{NAME}: {name} has shape {list(found)}, expected {list(shape)} for {problem.experts} experts of "
                f"[{problem.N}, {problem.K}] in layout version {layout.LAYOUT_VERSION}"
            )
    return relax.TensorType((rows_of(call), problem.out_N), problem.out_dtype)


def te_experts(problem: GroupedProblem, indptr: te.Tensor, M: tirx.Expr) -> te.Tensor:
    """Return the expert of each row, int32 [M]: how many experts end at or before it."""
    if problem.selected:
        return te.compute((M,), lambda m: indptr[0, m], name="experts")
    e = te.reduce_axis((0, problem.experts - 1), "e")
    if problem.experts == 1:
        return te.compute((M,), lambda m: tirx.const(0, "int32"), name="experts")
    return te.compute(
        (M,),
        lambda m: te.sum((indptr[e + 1].astype("int64") <= m.astype("int64")).astype("int32"), axis=e),
        name="experts",
    )


def te_products(
    problem: GroupedProblem, tensors: Mapping[str, te.Tensor], experts: te.Tensor, M: tirx.Expr
) -> te.Tensor:
    """Return the block computation of a problem from the expert of each row: what every schedule must compute."""
    x, words, scales, global_scale = (tensors[name] for name in OPERANDS[:-1])
    k = te.reduce_axis((0, problem.K), "k")

    def product(m: tirx.Expr, n: tirx.Expr) -> tirx.Expr:
        weight = packed_weight(words, scales, n, k, (experts[m],))
        return te.sum(x[0 if problem.shared_x else m, k].astype("float32") * weight, axis=k)

    products = te.compute((M, problem.N), product, name="matmul")
    return te_output(problem, M, lambda m, n: products[m, n] * global_scale[experts[m], n], None)


def _legalize(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    problem, M = problem_of(call), rows_of(call)

    def grouped_matmul(*tensors: te.Tensor) -> te.Tensor:
        named = dict(zip(OPERANDS, tensors, strict=True))
        rows = M if isinstance(M, tirx.IntImm) else named["x"].shape[0]
        return te_products(problem, named, te_experts(problem, named["indptr"], rows), rows)

    return builder.call_te(grouped_matmul, *call.args, primfunc_name_hint="nvfp4_grouped_matmul")


OP = register(NAME, "Multiply rows by the packed NVFP4 weights of their experts.", 5, _infer_type, _legalize)


def grouped_matmul(
    x: relax.Expr,
    words: relax.Expr,
    scales: relax.Expr,
    global_scale: relax.Expr,
    indptr: relax.Expr,
    *,
    N: int,
    out_dtype: str | None = None,
    activation: str | None = None,
) -> relax.Call:
    """Multiply rows of x by their experts' packed weights [N, K]; see the module for shapes.

    Parameters
    ----------
    x, words, scales, global_scale, indptr : relax.Expr
        Operands.
    N : int
        Rows of each expert's weight.
    out_dtype : str, optional
        Default: that of x.
    activation : {None, "silu_mul"}
        What follows; see :class:`~nvfp4_tvm.schedules.base.MatmulProblem`.
    """
    arguments = [x, words, scales, global_scale, indptr]
    return call(OP, arguments, N=N, out_dtype=str(out_dtype or x.ty.dtype), activation=activation or "")
