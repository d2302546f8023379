"""Configurations of the wgmma GEMM that decodes weights into shared memory, and their limits."""

from __future__ import annotations

from dataclasses import dataclass

from nvfp4_tvm import layout
from nvfp4_tvm.arch import get_arch
from nvfp4_tvm.errors import ShapeError
from nvfp4_tvm.schedules.gemm_wgmma_config import (
    MAX_TOKENS,
    TOKENS_MULTIPLE,
    WARPGROUP_THREADS,
    WARPGROUP_WARPS,
    WGMMA_REGISTERS,
    WGMMA_ROWS,
)

#: A box is 64 k of 16 bits wide: rows of 128 bytes, the period of the 128-byte swizzle. Boxes of a 128-block of k.
BOX_BYTES = 128
BOX_K = BOX_BYTES // 2
BOXES = layout.TILE_K // BOX_K
#: A box's slot is free when the next box is being multiplied, and a decoding warp copies the last box of a
#: 128-block before it decodes the block: with as many slots as boxes it would wait for a product of that block.
MIN_X_STAGES = BOXES + 1
#: Warpgroups that multiply, their warps, and the weight rows of a tile.
WARPGROUPS = 2
WARPS = WARPGROUPS * WARPGROUP_WARPS
ROWS = WARPGROUPS * WGMMA_ROWS
#: Output that a warpgroup stages for bulk stores: tokens of a stage, and stages.
STORE_TOKENS, STORE_STAGES = 64, 2
#: Registers of a decoding and of a multiplying thread (setmaxnreg), by warpgroups that decode: all of an SM.
REGISTERS = {1: (104, 200), 2: (88, 168)}
#: Of an mbarrier.
_BARRIER_BYTES = 8


@dataclass(frozen=True)
class SharedWgmmaConfig:
    """How one block of the kernel is built; one block fits an SM.

    Attributes
    ----------
    tokens : int
        Activation rows of a tile, wgmma's n.
    x_stages : int
        Boxes of activations in shared memory.
    w_stages : int
        128-blocks of decoded weights in shared memory.
    decoders : int
        Warpgroups that decode. With two the narrower tiles are not held up; the widest leave no registers for two.
    overhead : int
        What handing a tile's sums from block to block costs, in 128-blocks (:mod:`.stream_k`).
    """

    tokens: int
    x_stages: int
    w_stages: int
    decoders: int
    overhead: int = 4

    def __post_init__(self) -> None:
        limits = get_arch("sm_90")
        if self.tokens % TOKENS_MULTIPLE or not TOKENS_MULTIPLE <= self.tokens <= MAX_TOKENS:
            self._refuse(f"tokens must be a multiple of {TOKENS_MULTIPLE} up to {MAX_TOKENS}")
        if self.x_stages < MIN_X_STAGES or self.w_stages < 2 or self.decoders not in REGISTERS:
            self._refuse(
                f"expected at least {MIN_X_STAGES} stages of activations, 2 of weights and {sorted(REGISTERS)} "
                f"warpgroups that decode"
            )
        if self.tokens // 2 + WGMMA_REGISTERS > limits.registers_per_sm // self.threads:
            self._refuse(f"{self.tokens // 2} accumulators do not fit {self.threads} threads")
        if self.shared_bytes > limits.shared_per_block:
            self._refuse(f"{self.shared_bytes} B of shared memory do not fit an SM")

    def _refuse(self, why: str) -> None:
        raise ShapeError(f"wgmma GEMM {self.name}: {why}; choose another configuration")

    @property
    def name(self) -> str:
        """Short and unique, for kernel names."""
        return f"ss_t{self.tokens}_x{self.x_stages}_w{self.w_stages}_d{self.decoders}_o{self.overhead}"

    @property
    def warps(self) -> int:
        """Warps that multiply; each has one 16-row tile of the weight."""
        return WARPS

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return (WARPGROUPS + self.decoders) * WARPGROUP_THREADS

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a block."""
        x = self.x_stages * (self.tokens * BOX_BYTES + 2 * _BARRIER_BYTES)
        w = self.w_stages * (BOXES * ROWS * BOX_BYTES + WARPGROUPS * 2 * _BARRIER_BYTES)
        return x + w + WARPGROUPS * STORE_STAGES * STORE_TOKENS * BOX_BYTES

    def grid(self, sms: int) -> int:
        """Blocks of the launch on a GPU with ``sms`` multiprocessors."""
        return sms

    def partials_shape(self, sms: int) -> tuple[int, int, int, int]:
        """Accumulators that blocks hand over, fp32: [block, 8-token chunk, multiplying thread, 4]."""
        return (self.grid(sms), self.tokens // 8, WARPGROUPS * WARPGROUP_THREADS, 4)
