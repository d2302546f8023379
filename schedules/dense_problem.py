"""What a plain linear layer is asked to do: a layer that a checkpoint leaves unquantized, such as the head."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.tirx import Expr

#: Rows of a weight that is only known when it is called: MLC-LLM leaves the size of the vocabulary open.
SYMBOLIC_N = tirx.Var("N", "int64")


@dataclass(frozen=True)
class DenseProblem:
    """``out[M, N] = cast(x[M, K] @ weight[N, K].T)`` with x and weight of one dtype, any M, summed in float32.

    Attributes
    ----------
    N : int or None
        Rows of the weight; None is any.
    K : int
        Its columns.
    dtype, out_dtype : str
        float32, float16 or bfloat16.
    """

    N: int | None
    K: int
    dtype: str
    out_dtype: str

    @property
    def out_N(self) -> Expr | int:
        """Columns of ``out``."""
        return SYMBOLIC_N if self.N is None else self.N

    @property
    def label(self) -> str:
        """What it multiplies by, as names of functions begin: letters, digits and underscores."""
        return f"dense_{'any' if self.N is None else self.N}x{self.K}"

    @property
    def index_dtype(self) -> str:
        """What counts the elements of the weight: int32, or int64 where there may be too many for that."""
        return "int32" if self.N is not None and self.N * self.K < 2**31 else "int64"

    def operands(self, M: Expr | int) -> dict[str, tuple[tuple[Expr | int, ...], str]]:
        """Return shape and dtype of every operand, in order, ``out`` not included."""
        return {"x": ((M, self.K), self.dtype), "weight": ((self.out_N, self.K), self.dtype)}
