"""Configurations of the wgmma GEMM with both operands in shared memory, and their limits."""

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
    WGMMA_ROWS,
)

#: Bytes of a row of a box: 64 k of 16 bits, the width of the 128-byte swizzle.
BOX_BYTES = 128
BOX_K = BOX_BYTES // 2
#: Boxes of a 128-block of k.
BOXES = layout.TILE_K // BOX_K
WARPGROUPS = 2
ROWS = WGMMA_ROWS * WARPGROUPS
WARPS = WARPGROUPS * WARPGROUP_WARPS
#: Tokens that a warpgroup stages at a time, and tokens of one bulk store.
STEP, PIECE = 64, 16
#: Registers of a decoding and of a multiplying thread, by warpgroups that decode.
REGISTERS = {1: (104, 200), 2: (88, 168)}


@dataclass(frozen=True)
class SharedWgmmaConfig:
    """How one block of the kernel is built."""

    tokens: int
    x_stages: int = 4
    w_stages: int = 2
    decoders: int = 1
    cluster: int = 1
    overhead: int = 6

    def __post_init__(self) -> None:
        if self.tokens % TOKENS_MULTIPLE or not TOKENS_MULTIPLE <= self.tokens <= MAX_TOKENS:
            self._refuse(f"tokens must be a multiple of {TOKENS_MULTIPLE} up to {MAX_TOKENS}")
        if self.shared_bytes > get_arch("sm_90").shared_per_block:
            self._refuse(f"{self.shared_bytes} B of shared memory do not fit an SM")

    def _refuse(self, why: str) -> None:
        raise ShapeError(f"wgmma GEMM {self.name}: {why}; choose another configuration")

    @property
    def name(self) -> str:
        """Short and unique, for kernel names."""
        return f"t{self.tokens}_x{self.x_stages}_w{self.w_stages}_d{self.decoders}_c{self.cluster}_o{self.overhead}"

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return (WARPGROUPS + self.decoders) * WARPGROUP_THREADS

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a block."""
        x = self.x_stages * (self.tokens * BOX_BYTES + 2 * 8)  # with two 8-byte barriers
        w = self.w_stages * (BOXES * ROWS * BOX_BYTES + 2 * 8 * WARPGROUPS)
        return x + w + WARPGROUPS * 2 * STEP * BOX_BYTES

    def grid(self, sms: int) -> int:
        """Blocks of the launch on a GPU with ``sms`` multiprocessors."""
        return sms // self.cluster * self.cluster

    def partials_shape(self, sms: int) -> tuple[int, int, int, int]:
        """Accumulators that blocks hand over, fp32: [block, 8-token chunk, multiplying thread, 4]."""
        return (self.grid(sms), self.tokens // 8, WARPGROUPS * WARPGROUP_THREADS, 4)
