"""Configurations of the streaming mma.sync GEMM (:mod:`.gemm_stream_kernel`) and their limits."""

from __future__ import annotations

from dataclasses import dataclass

from nvfp4_tvm import layout
from nvfp4_tvm.arch import MAX_THREADS_PER_BLOCK, WARP_SIZE
from nvfp4_tvm.errors import ShapeError

#: Tokens of an mma.m16n8k16, its n.
MMA_TOKENS = 8
#: Bytes of one token's 128-block of activations.
X_BLOCK_BYTES = 2 * layout.TILE_K
#: Bytes of the words and scales of 16 weight rows in a 128-block.
W_BLOCK_BYTES = layout.TILE_N * layout.TILE_K // 2 + 4 * layout.LANES
#: Bytes of the integers that say what a block works on.
PLAN_BYTES = 32


@dataclass(frozen=True)
class StreamConfig:
    """How one block of the kernel is built.

    Attributes
    ----------
    tokens : int
        Activation rows of a tile.
    warps : int
        Warps of a block.
    tiles : int
        Tiles of 16 weight rows that a warp multiplies with all tokens.
    x_stages : int
        128-blocks of activations in shared memory: one in use, the others on their way.
    w_stages : int
        128-blocks of weights on their way in shared memory; the one in use is in registers.
    blocks_per_sm : int
        Resident blocks of an SM; the grid is that many times the number of SMs.
    group : int
        Tiles whose fragments are decoded at a time. With all ``tiles`` the activations are read from shared memory
        as they are needed; with fewer, those of one step of 32 k are held in registers for all groups.
    early : bool
        Whether fragments are decoded during the multiplications before theirs, which takes twice their registers.
    overhead : int
        What handing a tile's sums from block to block costs, in 128-blocks (:mod:`.stream_k`). So many that no
        tile of a weight is ever cut spares the launch that sets the flags to zero.
    """

    tokens: int
    warps: int
    tiles: int
    x_stages: int
    w_stages: int
    blocks_per_sm: int
    group: int = 1
    early: bool = True
    overhead: int = 6

    def __post_init__(self) -> None:
        if self.tokens % MMA_TOKENS or self.tokens < MMA_TOKENS:
            self._refuse(f"tokens must be a positive multiple of {MMA_TOKENS}")
        if min(self.warps, self.tiles, self.x_stages - 1, self.w_stages, self.blocks_per_sm) < 1:
            self._refuse("expected at least 1 warp, tile and block, 2 stages of activations, 1 of weights")
        if self.threads > MAX_THREADS_PER_BLOCK:
            self._refuse(f"{self.threads} threads, a block has at most {MAX_THREADS_PER_BLOCK}")
        if self.group not in (1, self.tiles):
            self._refuse("a group is one tile or all of them")

    def _refuse(self, why: str) -> None:
        raise ShapeError(f"streaming GEMM {self.name}: {why}; choose another configuration")

    @property
    def name(self) -> str:
        """Short and unique, for kernel names."""
        warps = f"w{self.warps}x{self.tiles}g{self.group}{'e' * self.early}"
        return (
            f"t{self.tokens}_{warps}_x{self.x_stages}_s{self.w_stages}_b{self.blocks_per_sm}_o{self.overhead}"
        )

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.warps * WARP_SIZE

    @property
    def row_tiles(self) -> int:
        """Tiles of 16 weight rows of a block."""
        return self.warps * self.tiles

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a block."""
        weights = self.w_stages * self.row_tiles * W_BLOCK_BYTES
        return self.x_stages * self.tokens * X_BLOCK_BYTES + weights + PLAN_BYTES

    def grid(self, sms: int) -> int:
        """Blocks of the launch for GPUs with up to ``sms`` multiprocessors."""
        return sms * self.blocks_per_sm

    def partials_shape(self, sms: int) -> tuple[int, int, int, int]:
        """Accumulators that blocks hand over, fp32: [block, fragment, thread, 4]."""
        return (self.grid(sms), self.tiles * self.tokens // MMA_TOKENS, self.threads, 4)

    def cuts(self, K: int) -> bool:
        """Whether a tile of a weight with K columns may be cut."""
        return self.overhead < layout.tiles(1, K)[1]
