"""Configurations of the wgmma GEMM, their limits, and which of them serves which M."""

from __future__ import annotations

from dataclasses import dataclass

from nvfp4_tvm import layout
from nvfp4_tvm.arch import WARP_SIZE, get_arch
from nvfp4_tvm.errors import ShapeError
from nvfp4_tvm.schedules.gemm_store_kernel import STAGING_SHAPE

#: Rows of wgmma's A operand (PTX ISA, "Asynchronous Warpgroup Level Matrix Shape").
WGMMA_ROWS = 64
WARPGROUP_WARPS = 4
WARPGROUP_THREADS = WARPGROUP_WARPS * WARP_SIZE
#: wgmma's n is a multiple of 8 up to 256; stmatrix stores the epilogue 16 tokens at a time.
TOKENS_MULTIPLE, MAX_TOKENS = 16, 256
#: Bytes of one token's 128-block of activations, and of one warp's words and scales of a 128-block.
X_BLOCK_BYTES = 2 * layout.TILE_K
W_BLOCK_BYTES = layout.TILE_N * layout.TILE_K // 2 + 4 * layout.LANES
#: setmaxnreg takes multiples of 8 (PTX ISA).
_REGISTER_UNIT = 8
#: What the producer's loop needs, and what is kept for wgmma's other operands besides the accumulators.
_PRODUCER_REGISTERS, _OTHER_REGISTERS = 32, 64
_MAX_CONSUMER_REGISTERS = 240
#: What ptxas wants at launch besides wgmma's accumulators (C7602: "register target of 154 or higher" for 128). Of
#: 8667 trials on an H200 the 102 that asked for more did not compile, and all others did.
WGMMA_REGISTERS = 26


@dataclass(frozen=True)
class WgmmaConfig:
    """How one block of the kernel is built.

    Attributes
    ----------
    tokens : int
        Activation rows of a tile, wgmma's n.
    warpgroups : int
        Warpgroups that multiply, 64 weight rows each; one more feeds them.
    x_stages : int
        128-blocks of activations in shared memory.
    w_stages : int
        128-blocks of weights in shared memory.
    blocks_per_sm : int
        The grid is that many times the number of SMs.
    residents : int
        Blocks that fit an SM at the same time, by registers and shared memory; 0 for ``blocks_per_sm``. With room
        for more, the next launches start early and read their weights while this one ends.
    overhead : int
        What handing a tile's sums from block to block costs, in 128-blocks (:mod:`.stream_k`).
    """

    tokens: int
    warpgroups: int
    x_stages: int
    w_stages: int
    blocks_per_sm: int
    residents: int = 0
    overhead: int = 6

    def __post_init__(self) -> None:
        limits = get_arch("sm_90")
        if self.tokens % TOKENS_MULTIPLE or not TOKENS_MULTIPLE <= self.tokens <= MAX_TOKENS:
            self._refuse(f"tokens must be a multiple of {TOKENS_MULTIPLE} up to {MAX_TOKENS}")
        if min(self.warpgroups, self.x_stages - 1, self.w_stages - 1, self.blocks_per_sm) < 1:
            self._refuse("expected at least 1 warpgroup and block and 2 stages")
        if self.residents == 0:
            object.__setattr__(self, "residents", self.blocks_per_sm)
        if self.residents < self.blocks_per_sm:
            self._refuse(f"the grid has {self.blocks_per_sm} blocks an SM, {self.residents} are to fit")
        if self.residents * self.threads > limits.max_threads_per_sm:
            self._refuse(f"an SM holds {limits.max_threads_per_sm} threads, these are {self.threads} a block")
        if limits.blocks_per_sm(self.threads, self.registers, self.shared_bytes) < self.residents:
            self._refuse(f"that many blocks with {self.shared_bytes} B of shared memory do not fit an SM")
        if self.tokens // 2 + WGMMA_REGISTERS > self.registers:
            self._refuse(f"{self.tokens // 2} accumulators do not fit {self.registers} registers at launch")
        if self.tokens // 2 + _OTHER_REGISTERS > self.consumer_registers:
            self._refuse(f"{self.tokens // 2} accumulators do not fit {self.consumer_registers} registers")

    def _refuse(self, why: str) -> None:
        raise ShapeError(f"wgmma GEMM {self.name}: {why}; choose another configuration")

    @property
    def name(self) -> str:
        """Short and unique, for kernel names."""
        tile = f"t{self.tokens}_g{self.warpgroups}_x{self.x_stages}_w{self.w_stages}"
        return f"{tile}_b{self.blocks_per_sm}_r{self.residents}_o{self.overhead}"

    @property
    def warps(self) -> int:
        """Warps that multiply; each has one 16-row tile of the weight."""
        return self.warpgroups * WARPGROUP_WARPS

    @property
    def threads(self) -> int:
        """Threads of a block, the feeding warpgroup included."""
        return (self.warpgroups + 1) * WARPGROUP_THREADS

    @property
    def registers(self) -> int:
        """Registers of each thread at launch: all of them, in equal shares."""
        share = get_arch("sm_90").registers_per_sm // (self.residents * self.threads)
        return min(share, get_arch("sm_90").registers_per_thread) // _REGISTER_UNIT * _REGISTER_UNIT

    @property
    def consumer_registers(self) -> int:
        """Registers of a multiplying thread after it took over what the feeding warpgroup gave up."""
        left = self.registers * (self.warpgroups + 1) - _PRODUCER_REGISTERS
        return min(left // self.warpgroups // _REGISTER_UNIT * _REGISTER_UNIT, _MAX_CONSUMER_REGISTERS)

    @property
    def producer_registers(self) -> int:
        """Registers that a thread of the feeding warpgroup keeps: what the others leave."""
        left = self.registers * (self.warpgroups + 1) - self.consumer_registers * self.warpgroups
        # Where there are enough for all, ptxas refuses to keep more than it gave (C7406)
        return min(left, self.registers, self.consumer_registers)

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a block."""
        x = self.x_stages * (self.tokens * X_BLOCK_BYTES + 2 * 8)  # with two 8-byte barriers
        w = self.w_stages * self.warps * W_BLOCK_BYTES
        return x + w + self.warps * STAGING_SHAPE[0] * STAGING_SHAPE[1] * 2

    def grid(self, sms: int) -> int:
        """Blocks of the launch on a GPU with ``sms`` multiprocessors."""
        return sms * self.blocks_per_sm

    def partials_shape(self, sms: int) -> tuple[int, int, int, int]:
        """Accumulators that blocks hand over, fp32: [block, 8-token chunk, multiplying thread, 4]."""
        return (self.grid(sms), self.tokens // 8, self.warpgroups * WARPGROUP_THREADS, 4)
