"""Configurations of the cluster GEMM and their limits."""

from __future__ import annotations

from dataclasses import dataclass

from nvfp4_tvm import layout
from nvfp4_tvm.arch import get_arch
from nvfp4_tvm.errors import ShapeError
from nvfp4_tvm.schedules.gemm_store_kernel import STAGING_SHAPE
from nvfp4_tvm.schedules.gemm_wgmma_config import (
    MAX_TOKENS,
    TOKENS_MULTIPLE,
    W_BLOCK_BYTES,
    WARPGROUP_THREADS,
    WARPGROUP_WARPS,
    WGMMA_ROWS,
    X_BLOCK_BYTES,
)

#: Largest cluster that every GPU with clusters launches (CUDA programming guide, "Thread Block Clusters").
MAX_CLUSTER = 8
#: Warps of the producer warpgroup, each of which copies every fourth row of activations.
PRODUCER_WARPS = WARPGROUP_WARPS
#: Registers of a producer: addresses.
_PRODUCER_REGISTERS = 56
#: Registers of a consumer besides its accumulators: words, fragments, addresses.
_OTHER_REGISTERS = 56
_REGISTER_UNIT = 8  # of setmaxnreg (PTX ISA)
_MAX_CONSUMER_REGISTERS = 240


@dataclass(frozen=True)
class ClusterConfig:
    """How a cluster of blocks computes one tile of the output.

    Attributes
    ----------
    tokens : int
        Activation rows of a tile, wgmma's n.
    warpgroups : int
        Warpgroups that multiply; one more feeds them.
    warp_tiles : int
        Tiles of 16 weight rows of a warp: activations in shared memory serve all of them.
    cluster : int
        Blocks of a cluster, which share the tile's k.
    x_stages, w_stages : int
        128-blocks of activations and of weights in shared memory.
    residents : int
        Blocks that fit an SM at the same time, by registers and shared memory. With room for more than a launch
        has, the next one starts early and reads its weights while this one ends.
    """

    tokens: int
    warpgroups: int
    warp_tiles: int
    cluster: int
    x_stages: int
    w_stages: int
    residents: int = 1

    def __post_init__(self) -> None:
        limits = get_arch("sm_90")
        if self.tokens % TOKENS_MULTIPLE or not TOKENS_MULTIPLE <= self.tokens <= MAX_TOKENS:
            self._refuse(f"tokens must be a multiple of {TOKENS_MULTIPLE} up to {MAX_TOKENS}")
        if min(self.warpgroups, self.warp_tiles, self.x_stages - 2, self.w_stages - 1) < 1:
            self._refuse("expected at least 1 warpgroup and tile, 3 stages of activations and 2 of weights")
        if not 1 <= self.cluster <= MAX_CLUSTER:
            self._refuse(f"a cluster has 1 to {MAX_CLUSTER} blocks")
        if self.residents * self.threads > limits.max_threads_per_sm:
            self._refuse(f"an SM holds {limits.max_threads_per_sm} threads, these are {self.threads} a block")
        if limits.blocks_per_sm(self.threads, self.registers, self.shared_bytes) < self.residents:
            self._refuse(f"that many blocks with {self.shared_bytes} B of shared memory do not fit an SM")
        if self.accumulators + _OTHER_REGISTERS > self.consumer_registers:
            self._refuse(f"{self.accumulators} accumulators do not fit {self.consumer_registers} registers")

    def _refuse(self, why: str) -> None:
        raise ShapeError(f"cluster GEMM {self.name}: {why}; choose another configuration")

    @property
    def name(self) -> str:
        """Short and unique, for kernel names."""
        tile = f"t{self.tokens}_g{self.warpgroups}x{self.warp_tiles}_c{self.cluster}"
        return f"{tile}_x{self.x_stages}_w{self.w_stages}_r{self.residents}"

    @property
    def warps(self) -> int:
        """Warps that multiply."""
        return self.warpgroups * WARPGROUP_WARPS

    @property
    def tiles(self) -> int:
        """Tiles of 16 weight rows of a block."""
        return self.warps * self.warp_tiles

    @property
    def rows(self) -> int:
        """Weight rows of a block."""
        return self.warpgroups * self.warp_tiles * WGMMA_ROWS

    @property
    def threads(self) -> int:
        """Threads of a block, the feeding warpgroup included."""
        return (self.warpgroups + 1) * WARPGROUP_THREADS

    @property
    def accumulators(self) -> int:
        """Accumulators of a multiplying thread."""
        return self.warp_tiles * self.tokens // 2

    @property
    def registers(self) -> int:
        """Registers of each thread at launch: all of them, in equal shares."""
        limits = get_arch("sm_90")
        share = limits.registers_per_sm // (self.residents * self.threads)
        return min(share, limits.registers_per_thread) // _REGISTER_UNIT * _REGISTER_UNIT

    @property
    def producer_registers(self) -> int:
        """Registers that a thread of the feeding warpgroup keeps."""
        return min(_PRODUCER_REGISTERS, self.registers)

    @property
    def consumer_registers(self) -> int:
        """Registers of a multiplying thread after it took over what the feeding warpgroup gave up."""
        left = self.registers * (self.warpgroups + 1) - self.producer_registers
        return min(left // self.warpgroups // _REGISTER_UNIT * _REGISTER_UNIT, _MAX_CONSUMER_REGISTERS)

    @property
    def ring_bytes(self) -> int:
        """Shared memory of the stages, and of the tile's sums afterwards."""
        stages = self.x_stages * self.tokens * X_BLOCK_BYTES + self.w_stages * self.tiles * W_BLOCK_BYTES
        return max(stages, self.rows * self.tokens * 4)

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a block."""
        staging = self.warps * STAGING_SHAPE[0] * STAGING_SHAPE[1] * 2
        return self.ring_bytes + staging + self.x_stages * 2 * 8  # two 8-byte barriers a stage

    def grid(self, M: int, N: int) -> int:
        """Blocks of the launch."""
        return -(-M // self.tokens) * -(-layout.tiles(N, 1)[0] // self.tiles) * self.cluster
