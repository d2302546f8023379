"""How the mma.sync GEMM is cut into blocks, warps and stages, and what follows from that.

All sizes are in elements: rows of W (``N``), tokens (``M``) and positions along ``K``.
"""

from __future__ import annotations

from dataclasses import dataclass

from nvfp4_tvm import layout
from nvfp4_tvm.arch import MAX_THREADS_PER_BLOCK, WARP_SIZE, Arch
from nvfp4_tvm.errors import ShapeError
from nvfp4_tvm.schedules.intrin.mma_sync import TOKENS

#: A step is 8 consecutive k of each of the four lanes q, one word of W: two mma.m16n8k16.
STEP_K = 32
#: Bytes of a 16-bit activation.
ACTIVATION_BYTES = 2


@dataclass(frozen=True)
class MmaConfig:
    """One way to run the GEMM.

    Attributes
    ----------
    block_m, block_n : int
        Tokens and rows of W of a thread block.
    warp_m, warp_n : int
        Of one warp; a block has ``block_m / warp_m * block_n / warp_n`` warps for each part of ``k_warps``.
    k_warps : int
        Warps that share a tile of out and split every stage along K; their sums are added in shared memory.
    splits : int
        Thread blocks that share a tile of out and split K; their sums are added by a second launch.
    block_k : int
        Positions along K of a pipeline stage.
    stages : int
        Buffers of the pipeline: ``stages - 1`` copies are in flight while one is used.
    token_tiles : int
        Tiles of 8 tokens whose fragments are in registers at a time.
    """

    block_m: int
    block_n: int
    warp_m: int
    warp_n: int
    k_warps: int = 1
    splits: int = 1
    block_k: int = 128
    stages: int = 2
    token_tiles: int = 2

    def __post_init__(self) -> None:
        self._require(self.block_k in (64, 128, 256), "block_k is 64, 128 or 256")
        self._require(
            self.warp_n % layout.TILE_N == 0 and self.warp_m % (TOKENS * self.token_tiles) == 0,
            f"warp_n is a multiple of {layout.TILE_N} and warp_m of {TOKENS} x token_tiles",
        )
        self._require(
            self.block_m % self.warp_m == 0 and self.block_n % self.warp_n == 0,
            "a block holds whole warp tiles",
        )
        self._require(self.stages >= 2 and self.splits >= 1, "there are at least 2 stages and 1 split")
        self._require(self.steps % self.k_warps == 0, "k_warps divides the steps of a stage")
        self._require(
            self.warp_m // TOKENS % self.k_warps == 0, "k_warps share the token tiles of a warp evenly"
        )
        self._require(self.threads <= MAX_THREADS_PER_BLOCK, f"at most {MAX_THREADS_PER_BLOCK} threads")

    def _require(self, condition: bool, what: str) -> None:
        if not condition:
            raise ShapeError(f"{self}: expected that {what}")

    @property
    def name(self) -> str:
        """For logs and kernel names."""
        parts = [f"{self.block_m}x{self.block_n}x{self.block_k}", f"w{self.warp_m}x{self.warp_n}"]
        parts += [f"k{self.k_warps}"] * (self.k_warps > 1) + [f"s{self.stages}"]
        parts += [f"t{self.token_tiles}"] + [f"split{self.splits}"] * (self.splits > 1)
        return "_".join(parts)

    @property
    def warps(self) -> int:
        """Warps that cover a tile of out."""
        return self.block_m // self.warp_m * (self.block_n // self.warp_n)

    @property
    def all_warps(self) -> int:
        """Warps of a block."""
        return self.warps * self.k_warps

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.all_warps * WARP_SIZE

    @property
    def accumulators(self) -> int:
        """Accumulator fragments (16 rows of W x 8 tokens) of a warp."""
        return self.warp_n // layout.TILE_N * (self.warp_m // TOKENS)

    @property
    def tiles_n(self) -> int:
        """Tiles of 16 rows of W of a block."""
        return self.block_n // layout.TILE_N

    @property
    def tiles_m(self) -> int:
        """Tiles of 8 tokens of a block."""
        return self.block_m // TOKENS

    @property
    def steps(self) -> int:
        """Steps of a stage."""
        return self.block_k // STEP_K

    @property
    def stage_blocks(self) -> int:
        """128-blocks of the layout that a stage touches."""
        return max(1, self.block_k // layout.TILE_K)

    @property
    def stage_words(self) -> int:
        """Words of a lane in each of those 128-blocks and row half."""
        return min(layout.WORDS_PER_LANE, self.steps)

    def shared_bytes(self, group_size: int = 16) -> int:
        """Shared memory of a block."""
        stage = self.block_m * self.block_k * ACTIVATION_BYTES
        words = self.tiles_n * self.stage_blocks * 2 * layout.LANES * self.stage_words
        scale_words = self.tiles_n * self.stage_blocks * layout.scales_shape(1, 16, group_size)[-1]
        pipeline = (stage + 4 * (words + scale_words)) * self.stages
        sums = self.block_m * self.block_n * 4 * self.k_warps if self.k_warps > 1 else 0
        return max(pipeline, sums)

    def exceeds(self, arch: Arch) -> str | None:
        """Say why a block has no room on an architecture, if it has none."""
        if self.shared_bytes() <= arch.shared_per_block:
            return None
        return (
            f"{self.name} needs {self.shared_bytes()} bytes of shared memory, {arch.name} has "
            f"{arch.shared_per_block}"
        )

    def stages_along_k(self, K: int) -> int:
        """Stages that one block runs through, of each of ``splits`` parts of K.

        At least so many that the pipeline has a loop of two iterations: what lies beyond K is zero.
        """
        total = -(-layout.tiles(1, K)[1] * layout.TILE_K // self.block_k)
        return max(-(-total // self.splits), self.stages + 1)
