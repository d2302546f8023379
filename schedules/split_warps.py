"""Blocks whose warps share K: what the GEMV on packed weights and the kernel of plain layers have in common."""

from __future__ import annotations

from dataclasses import dataclass

from nvfp4_tvm.arch import WARP_SIZE
from nvfp4_tvm.schedules.intrin.mma_sync import ROWS, TOKENS


@dataclass(frozen=True)
class SplitWarps:
    """Warps of a block, each with sums of its own part of K, which meet in shared memory, eight tokens at a time.

    Attributes
    ----------
    KS : int
        Warps of a block, among which K is split: each takes a run of it.
    NT : int
        Tiles of 16 weight rows a block owns; every warp works on all of them, so that a fragment of activations,
        once loaded, serves them all.
    """

    KS: int
    NT: int

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.KS * WARP_SIZE

    @property
    def rows(self) -> int:
        """Weight rows of a block."""
        return self.NT * ROWS

    @property
    def shared_stride(self) -> int:
        """Elements between two tokens of a warp's partial sums.

        4 more than a multiple of 16: the lanes of a warp store (token 2q, row g) at 8q + g mod 32, all banks.
        """
        return self.rows + 4

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block: the partial sums of eight tokens."""
        return self.KS * TOKENS * self.shared_stride * 4
