"""Where the workspaces of a kernel lie in one byte array, and how many bytes that takes for any M.

A kernel says the shape of each workspace for M rows. Code that allocates wants little: an exact number where M is
known, and where it is not, one expression that memory planning can compare: ``slope * M + constant``, no less than
every kernel of the dispatch needs for the M it may be given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

from tvm import DataType, tirx
from tvm.sym import Analyzer

from nvfp4_tvm.errors import ShapeError
from nvfp4_tvm.schedules.base import MRange
from nvfp4_tvm.schedules.kernel import CudaKernel, Workspace

#: Bytes every workspace is aligned to within the array: TMA wants 128 for the arrays its tensor maps name (CUDA
#: Driver API, ``cuTensorMapEncodeTiled``: 16, and 32 for interleaved ones), a swizzled tile 1024.
ALIGNMENT = 1024


@dataclass(frozen=True)
class Bytes:
    """Bytes as a linear function of M that is never too small.

    Attributes
    ----------
    slope, constant : int
        ``slope * M + constant``.
    """

    slope: int
    constant: int

    def of(self, M: tirx.Expr) -> tirx.Expr:
        """Return the expression for a symbolic M."""
        constant = tirx.const(self.constant, "int64")
        return constant if not self.slope else M * tirx.const(self.slope, "int64") + constant


def _aligned(nbytes: tirx.Expr) -> tirx.Expr:
    unit = tirx.const(ALIGNMENT, "int64")
    return (nbytes + unit - 1) // unit * unit


def workspace_size(workspace: Workspace, M: tirx.Expr) -> tirx.Expr:
    """Return the bytes of one workspace as an expression of M (int64)."""
    nbytes = tirx.const(-(-DataType(workspace.dtype).bits // 8), "int64")
    for extent in workspace.shape(M):
        nbytes = nbytes * (tirx.const(extent, "int64") if isinstance(extent, int) else extent)
    return nbytes


def offsets(kernel: CudaKernel, M: tirx.Expr) -> tuple[dict[str, tirx.Expr], tirx.Expr]:
    """Return the byte offset of each workspace of ``kernel``, and the bytes of all of them."""
    analyzer = Analyzer()
    at: dict[str, tirx.Expr] = {}
    end = tirx.const(0, "int64")
    for workspace in kernel.workspaces:
        at[workspace.name] = end
        end = analyzer.simplify(end + _aligned(workspace_size(workspace, M)))
    return at, end


def exact(kernel: CudaKernel, M: int) -> int:
    """Return the bytes of the workspaces of ``kernel`` for ``M`` rows."""
    _, end = offsets(kernel, tirx.const(M, "int64"))
    return int(Analyzer().simplify(end))


def bound(kernels: Sequence[tuple[MRange, CudaKernel]]) -> Bytes:
    """Return a linear bound on the bytes that any of ``kernels`` needs for an M of its range."""
    M = tirx.Var("M", "int64")
    linear = []
    for m_range, kernel in kernels:
        sizes = [_linear(workspace_size(workspace, M)) for workspace in kernel.workspaces]
        slope = sum((a for a, _ in sizes), Fraction(0))
        constant = sum((max(b, Fraction(0)) + ALIGNMENT for _, b in sizes), Fraction(0))
        linear.append((m_range.high, slope, constant))
    # The slope is that of ranges without an end; what others need beyond it is a constant
    common = max((slope for high, slope, _ in linear if high is None), default=Fraction(0))
    needs = [
        constant if high is None else constant + max(slope - common, Fraction(0)) * high
        for high, slope, constant in linear
    ]
    return Bytes(ceil(common), ceil(max(needs, default=0) / ALIGNMENT) * ALIGNMENT)


def _linear(expr: tirx.Expr) -> tuple[Fraction, Fraction]:
    """Return (a, b) with ``expr <= a * M + b`` for every M >= 1, for an expression of one variable.

    Raises
    ------
    ShapeError
        If the expression holds something else than sums, products and quotients by constants, min and max.
    """
    if isinstance(expr, tirx.IntImm):
        return Fraction(0), Fraction(int(expr))
    if isinstance(expr, tirx.Var):
        return Fraction(1), Fraction(0)
    if isinstance(expr, tirx.Cast):
        return _linear(expr.value)
    if isinstance(expr, tirx.Add | tirx.Sub | tirx.Mul | tirx.FloorDiv | tirx.Max | tirx.Min):
        (a, b), (c, d) = _linear(expr.a), _linear(expr.b)
        if isinstance(expr, tirx.Add):
            return a + c, b + d
        if isinstance(expr, tirx.Sub) and not c:
            return a, b - d
        if isinstance(expr, tirx.Mul) and not (a and c):
            factor, (a, b) = (d, (a, b)) if not c else (b, (c, d))
            if factor >= 0:
                return a * factor, b * factor
        if isinstance(expr, tirx.FloorDiv) and not c and d > 0:
            return a / d, b / d
        if isinstance(expr, tirx.Max):
            return max(a, c), max(b, d)
        if isinstance(expr, tirx.Min):
            return (a, b) if (a, b) <= (c, d) else (c, d)
    raise ShapeError(
        f"workspace of {expr} bytes: found {type(expr).__name__}, expected sums of M, and products and "
        f"quotients by constants"
    )
