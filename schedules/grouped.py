"""What a matmul on the experts of a mixture is asked to do: rows of activations, each times its expert's weight.

The experts' packed weights are stacked: every array of :mod:`nvfp4_tvm.layout` has a leading axis ``[E]``. Which
rows are whose is data on the device, in one of two forms:

``grouped``   rows are sorted by expert; ``indptr int32[E + 1]``, ascending from 0 to M, says that expert e has the
              rows ``indptr[e] .. indptr[e + 1] - 1``, possibly none.
``selected``  the decode of one token: ``indptr int32[1, M]`` holds the M experts it is routed to; row m of the
              output is row m of x, or its only row (``shared_x``), times expert ``indptr[0, m]``.

Kernel interface, the same for every family::

    f(x, words, scales, global_scale, indptr, out[M, out_N])
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.tirx import Expr

from nvfp4_tvm.errors import ShapeError
from nvfp4_tvm.schedules.base import MatmulProblem

#: Word indices are 32 bits in the kernels.
MAX_WORDS = 2**31


@dataclass(frozen=True)
class GroupedProblem(MatmulProblem):
    """A :class:`~nvfp4_tvm.schedules.base.MatmulProblem` whose weight [N, K] is chosen by row.

    Attributes
    ----------
    experts : int
        E, the number of weights.
    selected : bool
        Which form ``indptr`` has, see the module.
    shared_x : bool
        With ``selected``: whether x has one row, which every expert multiplies.
    """

    experts: int = 1
    selected: bool = False
    shared_x: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        what = f"grouped matmul [{self.experts}, {self.N}, {self.K}]"
        if self.experts < 1:
            raise ShapeError(f"{what}: found {self.experts} experts, expected at least 1")
        if self.bias or self.residual:
            raise ShapeError(
                f"{what}: a bias or a residual cannot be fused, expected neither; add it afterwards"
            )
        if self.shared_x and not self.selected:
            raise ShapeError(f"{what}: rows sorted by expert cannot share one row of x")
        words = self.experts
        for extent in super().operands(1)["words"][0]:
            words *= int(extent)
        if words >= MAX_WORDS:
            raise ShapeError(
                f"{what}: {words} packed words, expected fewer than {MAX_WORDS}; shard the experts over more GPUs"
            )

    @property
    def label(self) -> str:
        """See `MatmulProblem.label`."""
        form = f"_{'shared' if self.shared_x else 'selected'}" if self.selected else ""
        return f"grouped{form}_{self.experts}x{self.N}x{self.K}"

    def operands(self, M: Expr | int) -> dict[str, tuple[tuple[Expr | int, ...], str]]:
        """See `MatmulProblem.operands`."""
        found = super().operands(1 if self.shared_x else M)
        for name in ("words", "scales", "global_scale"):
            shape, dtype = found[name]
            found[name] = (self.experts, *shape), dtype
        found["indptr"] = ((1, M) if self.selected else (self.experts + 1,)), "int32"
        return found

    def max_tiles(self, M: Expr, height: int) -> Expr:
        """Return how many tiles of ``height`` rows, none with rows of two experts, M rows make at most.

        Most when as many experts as possible have a row that begins a tile, and one has all the others.
        """
        if self.selected:
            return M
        begun = tirx.min(M, tirx.const(self.experts, "int64"))
        return begun + (M - begun) // height
