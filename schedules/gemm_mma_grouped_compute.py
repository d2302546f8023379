"""The mma.sync GEMM on experts as a block computation: :mod:`.gemm_mma_compute`, a weight for each tile of rows.

One more block comes first: ``tile`` holds the expert, the first row and the end of every tile of rows
(:mod:`.intrin.expert_tile`). All others take their rows and weights from it; a tile that there is not has no rows.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm.tirx import Buffer, Expr, PrimFunc
from tvm.tirx.script.builder import ir as T

from nvfp4_tvm.schedules.cpu_common import named
from nvfp4_tvm.schedules.gemm_mma_compute import Blocks, gemm_mma
from nvfp4_tvm.schedules.gemm_mma_config import MmaConfig
from nvfp4_tvm.schedules.grouped import GroupedProblem
from nvfp4_tvm.schedules.intrin.expert_tile import cuda_tile, emit_tile

#: Name of the block that finds tiles.
TILE = "tile"


def grouped_gemm_mma(problem: GroupedProblem, config: MmaConfig, cuda: bool = True) -> PrimFunc:
    """Return the block computation; ``cuda=False`` for one that runs on llvm, unscheduled."""
    return gemm_mma(problem, config, blocks=_CudaBlocks if cuda else GroupedBlocks)


class GroupedBlocks(Blocks):
    """Emits the blocks."""

    problem: GroupedProblem

    def __init__(self, problem: GroupedProblem, config: MmaConfig, group_size: int) -> None:
        assert config.splits == 1 and not problem.selected
        super().__init__(problem, config, group_size)
        self.blocks_m = T.cast(problem.max_tiles(self.M, config.block_m), "int32")

    def build(self) -> None:
        """Emit all blocks."""
        # Three buffers: compute_at takes no axis of one that the block has not
        self.expert, self.first, self.end = self.found = tuple(
            named(name, T.sblock_alloc_buffer((self.blocks_m,), "int32"))
            for name in ("expert", "first", "end")
        )
        indptr = self.buffers["indptr"]
        with T.serial(self.blocks_m) as loop, T.sblock(TILE):
            vm = T.axis.spatial(self.blocks_m, loop)
            T.reads(indptr[0 : self.problem.experts + 1])
            T.writes(*(buffer[vm] for buffer in self.found))
            self._find(vm, indptr)
        super().build()

    def _find(self, vm: Expr, indptr: Buffer) -> None:
        emit_tile(self.problem, self.config.block_m, self.found, vm, indptr, self.rows)

    @property
    def _weight_blocks(self) -> tuple[Expr | int, ...]:
        return self.blocks_m, self.blocks_n

    def _weight(self, outer: Sequence[Expr]) -> tuple[Expr, ...]:
        return (self.expert[outer[0]],)

    def _token(self, vm: Expr, row: Expr) -> Expr:
        return self.first[vm] + row

    def _end(self, vm: Expr) -> Expr:
        return self.end[vm]

    def _declare_reads(self, *regions: Expr) -> None:
        # Not tile: a schedule moves the epilogue below the loop that tile is in, which it refuses while tile is
        # outside, as it refuses to move tile there first, past a reader. Copies to shared memory keep it in front
        T.reads(*regions)


class _CudaBlocks(GroupedBlocks):
    def _find(self, vm: Expr, indptr: Buffer) -> None:
        name, source = cuda_tile(self.problem, self.config.block_m)
        found = (buffer[vm] for buffer in self.found)
        T.evaluate(T.cuda.func_call(name, *found, T.address_of(indptr[0]), vm, self.rows, source_code=source))
