"""The schedule of the mma.sync GEMM: the block computation of :mod:`.gemm_mma_compute` on blocks, warps and lanes.

Loops of the tensor-core block, from the outside::

    blockIdx.z split, blockIdx.x, blockIdx.y tile of out, threadIdx.z part of a stage, threadIdx.y warp tile
      stage                        software pipeline: the copies of a later stage fly during this one
        step                       decode this warp's W
          token group              load its activations
            k16, token tile, row tile   mma
"""

from __future__ import annotations

from tvm import s_tir
from tvm.s_tir.schedule import LoopRV, SBlockRV

from nvfp4_tvm.schedules.base import MatmulProblem
from nvfp4_tvm.schedules.gemm_mma_compute import gemm_mma
from nvfp4_tvm.schedules.gemm_mma_config import MmaConfig
from nvfp4_tvm.schedules.gemm_mma_grouped_compute import TILE
from nvfp4_tvm.schedules.gemm_mma_swizzle import CHUNK
from nvfp4_tvm.schedules.grouped import GroupedProblem
from nvfp4_tvm.schedules.intrin import mma
from nvfp4_tvm.schedules.lowering import BARRIER_BEFORE


def schedule_gemm_mma(problem: MatmulProblem, config: MmaConfig, group_size: int = 16) -> s_tir.Schedule:
    """Return the scheduled launch, to be lowered by :mod:`.lowering`."""
    return schedule_steps(s_tir.Schedule(gemm_mma(problem, config, group_size)), problem, config)


def schedule_steps(sch: s_tir.Schedule, problem: MatmulProblem, config: MmaConfig) -> s_tir.Schedule:
    """Apply the steps to a schedule of the block computation, whose trace may hold decisions already."""
    return _Scheduler(sch, problem, config).run()


class _Scheduler:
    def __init__(self, sch: s_tir.Schedule, problem: MatmulProblem, config: MmaConfig) -> None:
        self.sch, self.problem, self.config = sch, problem, config
        self.grouped = isinstance(problem, GroupedProblem)

    def run(self) -> s_tir.Schedule:
        """Apply all steps."""
        self._tile()
        self._place()
        self._copy_cooperatively()
        if self.grouped:
            self._find_tile()
        self._epilogue()
        self._tensorize()
        self._pipeline()
        return self.sch

    def _tile(self) -> None:
        """Bind blocks and warps; make the mma one block."""
        sch, c = self.sch, self.config
        self.sum = sch.get_sblock("sum")
        *outer, t, b, stage, step, k16, lane, _, _ = sch.get_loops(self.sum)
        self.mma = sch.blockize(lane)
        warp_n, t = sch.split(t, [c.block_n // c.warp_n, c.warp_n // 16])
        warp_m, group, b = sch.split(b, [c.block_m // c.warp_m, None, c.token_tiles])
        sch.reorder(warp_n, warp_m, stage, step, group, k16, b, t)
        warp = sch.fuse(warp_n, warp_m)
        axes = ["blockIdx.z"] * (c.splits > 1) + ["blockIdx.x", "blockIdx.y"]
        if self.grouped:
            # Blocks that run together share rows of x and one expert's weight, which stay in the L2
            axes.reverse()
        axes += ["threadIdx.z"] * (c.k_warps > 1)
        for loop, axis in zip(outer, axes, strict=True):
            sch.bind(loop, axis)
        sch.bind(warp, "threadIdx.y")
        for loop in (step, group, k16, b, t):
            sch.unroll(loop)
        self.block_tile = outer[-2] if c.k_warps > 1 else outer[-1]
        self.warp, self.stage, self.step, self.group = warp, stage, step, group
        self.outer = len(outer) + 1

    def _place(self) -> None:
        """Give every stage of the data its memory and the loop it is computed in."""
        sch = self.sch
        for name in ("x_shared", "w_shared", "s_shared"):
            sch.set_scope(sch.get_sblock(name), 0, "shared.dyn")
        for name in ("x_lane", "w_lane", "s_bytes", "s_lane", "w"):
            sch.set_scope(sch.get_sblock(name), 0, "local")
        sch.compute_at(sch.get_sblock("x_lane"), self.group)
        sch.compute_at(sch.get_sblock("w"), self.step)
        for name in ("s_lane", "s_bytes", "w_lane"):
            sch.compute_at(sch.get_sblock(name), self.stage)
        # First in the loop: copies that follow a consumer are not made asynchronous
        for name in ("x_shared", "s_shared", "w_shared"):
            sch.compute_at(sch.get_sblock(name), self.stage, index=0)

    def _inner(self, block: SBlockRV, outer: int) -> list[LoopRV]:
        return self.sch.get_loops(block)[outer:]

    def _copy_cooperatively(self) -> None:
        """Spread each copy over the threads, 16 bytes (8 for words of a short stage) a thread."""
        sch, c = self.sch, self.config
        widths = {"x_shared": CHUNK, "w_shared": c.stage_words, "s_shared": 4}
        units = []
        for name, width in widths.items():
            block = sch.get_sblock(name)
            flat = sch.fuse(*self._inner(block, self.outer + 1))
            turn, warp, lane, vector = sch.split(flat, [None, c.all_warps, 32, width])
            self._bind_warps(warp)
            sch.bind(lane, "threadIdx.x")
            sch.unroll(turn)
            sch.vectorize(vector)
            units.append(sch.add_unit_loop(turn))
        # One statement, hence one group of cp.async: with several, TVM counts the groups to wait for wrongly
        sch.merge(*units)

    def _bind_warps(self, warp: LoopRV) -> None:
        sch, c = self.sch, self.config
        if c.k_warps > 1:
            part, warp = sch.split(warp, [c.k_warps, c.warps])
            sch.bind(part, "threadIdx.z")
        sch.bind(warp, "threadIdx.y")

    def _epilogue(self) -> None:
        """Finish each warp's tile of out, tile by tile; with ``k_warps``, after adding the parts."""
        sch, c = self.sch, self.config
        names = ["out"]
        if c.splits == 1 and self.problem.out_dtype != "float32":
            names = ["value", "turned", "out"]
        if c.k_warps == 1:
            sch.set_scope(self.mma, 0, "local")
            at = self.warp
        else:
            names, at = ["total", *names], self.block_tile
            sch.set_scope(self.mma, 0, "shared.dyn")
            parts = sch.cache_write(self.mma, 0, "local")
            sch.reverse_compute_at(parts, self.warp)
            *tiles, lane, register = self._inner(parts, self.outer)
            self._per_lane(tiles, lane)
            sch.vectorize(register)
            # They may lie where the pipeline's buffers were
            sch.annotate(tiles[0], BARRIER_BEFORE, 1)
        blocks = [sch.get_sblock(name) for name in names]
        for block in blocks:
            sch.reverse_compute_at(block, at)
        *producers, out = blocks
        for block in producers:
            sch.set_scope(block, 0, "local")
        inner = self._inner(out, self.outer - 2 * (c.k_warps > 1))
        # Inside a tile: row half, unless there is one only, lane, and two elements, of one lane or of two
        gated = self.problem.activation == "silu_mul" and c.splits == 1
        tiles, within = inner[: -3 + gated], inner[-3 + gated :]
        if c.k_warps > 1:
            # The parts of a warp tile share its token tiles
            t, b = tiles if len(tiles) == 2 else (sch.add_unit_loop(tiles[0]), tiles[0])
            warp_n, t = sch.split(t, [c.block_n // c.warp_n, None])
            warp_m, b, part = sch.split(b, [c.block_m // c.warp_m, None, c.k_warps])
            sch.reorder(part, warp_n, warp_m, t, b)
            warp = sch.fuse(warp_n, warp_m)
            sch.bind(part, "threadIdx.z")
            sch.bind(warp, "threadIdx.y")
            tiles = [t, b]
        tile = sch.fuse(*tiles) if tiles else sch.add_unit_loop(within[0])
        sch.unroll(tile)
        if c.k_warps > 1:
            # On a loop that is not a thread: those lose their annotations
            sch.annotate(tile, BARRIER_BEFORE, 1)
        for block in reversed(producers):
            sch.compute_at(block, tile)
        self.tile_depth = len(sch.get_loops(out)) - len(within)
        self._finish_tile(names, within)

    def _find_tile(self) -> None:
        """Every thread finds its expert and rows for itself, before anything else."""
        block = self.sch.get_sblock(TILE)
        for buffer in range(3):
            self.sch.set_scope(block, buffer, "local")
        self.sch.compute_at(block, self.block_tile, index=0)

    def _finish_tile(self, names: list[str], within: list[LoopRV]) -> None:
        sch = self.sch
        if "total" in names:
            block = sch.get_sblock("total")
            lane, register, part = self._inner(block, self.tile_depth)
            sch.reorder(part, register)
            self._per_lane([part], lane)
            sch.vectorize(register)
            sch.decompose_reduction(block, part)
        if "turned" not in names:
            *others, lane = within
            self._per_lane(others, lane)
            return
        *halves, lane, element = self._inner(sch.get_sblock("value"), self.tile_depth)
        self._per_lane([*halves, element], lane)
        *halves, lane, _ = self._inner(sch.get_sblock("turned"), self.tile_depth)
        for loop in halves:
            sch.unroll(loop)
        sch.tensorize(lane, mma.transpose(self.problem.out_dtype))
        *halves, lane, element = within
        self._per_lane(halves, lane)
        if self.problem.out_N % 2:
            sch.unroll(element)
        else:
            sch.vectorize(element)

    def _per_lane(self, others: list[LoopRV], lane: LoopRV) -> None:
        self.sch.bind(lane, "threadIdx.x")
        for loop in others:
            self.sch.unroll(loop)

    def _tensorize(self) -> None:
        """Map fragments to lanes and blocks to intrinsics."""
        sch, c, dtype = self.sch, self.config, self.problem.x_dtype
        *tiles, lane, register = self._inner(sch.get_sblock("x_lane"), self.outer + 3)
        self._per_lane(tiles, lane)
        sch.tensorize(register, mma.load())

        *tiles, k16, _, _ = self._inner(sch.get_sblock("w"), self.outer + 2)
        for loop in tiles:
            sch.unroll(loop)
        sch.tensorize(k16, mma.decode(dtype))

        *tiles, lane, _ = self._inner(sch.get_sblock("s_lane"), self.outer + 1)
        for loop in tiles:
            sch.unroll(loop)
        sch.tensorize(lane, mma.scales(dtype))
        *tiles, lane = self._inner(sch.get_sblock("s_bytes"), self.outer + 1)
        self._per_lane(tiles, lane)

        loops = self._inner(sch.get_sblock("w_lane"), self.outer + 1)
        if min(c.stage_words, c.steps // c.k_warps) > 1:
            sch.vectorize(loops.pop())
        *tiles, lane = loops
        self._per_lane(tiles, lane)

        start = sch.decompose_reduction(self.mma, self.stage)
        for loop in self._inner(start, self.outer):
            sch.unroll(loop)
        sch.tensorize(sch.get_loops(sch.get_child_blocks(start)[0])[-2], mma.fill())
        sch.tensorize(sch.get_loops(sch.get_child_blocks(self.mma)[0])[-3], mma.mma(dtype))

    def _pipeline(self) -> None:
        """Copies run ``stages - 1`` iterations ahead of the four blocks that use them."""
        ahead = self.config.stages - 1
        self.sch.annotate(self.stage, "software_pipeline_stage", [0] + [ahead] * 4)
        self.sch.annotate(self.stage, "software_pipeline_order", list(range(5)))
        self.sch.annotate(self.stage, "software_pipeline_async_stages", [0])
