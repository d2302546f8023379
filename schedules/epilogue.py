"""The epilogue every CUDA family shares: from fp32 accumulators to one element of the output.

Accumulators hold sums of decoded products (:mod:`nvfp4_tvm.schedules.intrin.fp4_decode`), which are the true ones
over ``EPILOGUE_FACTOR``. Everything below is fp32; the one rounding is the last cast.
"""

from __future__ import annotations

from tvm import tirx

from nvfp4_tvm.schedules.base import MatmulProblem
from nvfp4_tvm.schedules.intrin.fp4_decode import EPILOGUE_FACTOR


def row_value(accumulator: tirx.Expr, global_scale: tirx.Expr, bias: tirx.Expr | None = None) -> tirx.Expr:
    """Return a row's product as fp32: the accumulator times its global scale, plus its bias if there is one.

    The factor is a power of two, so its product with the global scale is exact.
    """
    value = accumulator * (global_scale * tirx.const(EPILOGUE_FACTOR, "float32"))
    return value if bias is None else value + bias.astype("float32")


def silu(x: tirx.Expr) -> tirx.Expr:
    """Return ``x * sigmoid(x)`` in fp32; for very negative x the quotient is -0.0, as it should be."""
    return x / (tirx.const(1.0, "float32") + tirx.exp(-x))


def output(
    problem: MatmulProblem,
    value: tirx.Expr,
    up: tirx.Expr | None = None,
    residual: tirx.Expr | None = None,
) -> tirx.Expr:
    """Return one element of the output, cast.

    Parameters
    ----------
    problem : MatmulProblem
        Its activation and output dtype.
    value : tirx.Expr
        `row_value` of the row; of the gate row where the activation is ``silu_mul``.
    up : tirx.Expr, optional
        `row_value` of the up row, eight rows after the gate row.
    residual : tirx.Expr, optional
        The element of the residual.
    """
    if problem.activation == "silu_mul":
        assert up is not None
        value = silu(value) * up
    if residual is not None:
        value = value + residual.astype("float32")
    return value.astype(problem.out_dtype)
