"""The mma.sync GEMM as a block computation: what is computed, stage by stage, without any thread or loop order.

Unscheduled, it runs on llvm. Every buffer is cut into the tiles of thread blocks from the start, so that
scheduling never splits a symbolic extent. Axes: ``t`` a tile of 16 rows of W, ``b`` 8 tokens, ``i`` a step of 32 k
in a stage, 8 consecutive k for each of the lanes' four q. Blocks:

``x_shared``    activations in swizzled chunks (:mod:`.gemm_mma_swizzle`); zero for rows beyond M and k beyond K
``w_shared``, ``s_shared``   words and scales of a stage; beyond the packed arrays those of their last tile
``x``           B fragments: lane 4g + q holds token g
``w_lane``, ``s_bytes``, ``s``, ``w``   a lane's words and scales, decoded: A fragments
``sum``         accumulators, of W times x
``total``       their sum over the warps that split a stage along K
``value``, ``turned``, ``out``   epilogue: to the output dtype, to a lane per token, to memory
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx import Buffer, Expr, PrimFunc
from tvm.tirx.script.builder import ir as T

from nvfp4_tvm import layout
from nvfp4_tvm.schedules import epilogue
from nvfp4_tvm.schedules.base import MatmulProblem
from nvfp4_tvm.schedules.cpu_common import argument, named
from nvfp4_tvm.schedules.gemm_mma_config import MmaConfig
from nvfp4_tvm.schedules.gemm_mma_swizzle import CHUNK, chunk_of, slot_of
from nvfp4_tvm.schedules.intrin import fp4_decode, mma
from nvfp4_tvm.schedules.intrin.mma_sync import TOKENS

LANE_K = 32


def partial_sums_shape(problem: MatmulProblem, config: MmaConfig, M: Expr) -> tuple[Expr | int, ...]:
    """Shape of the fp32 sums that the splits leave to the second launch: [splits, M, padded N]."""
    return (config.splits, M, layout.global_scale_shape(problem.N)[0])


def gemm_mma(
    problem: MatmulProblem, config: MmaConfig, group_size: int = 16, blocks: type[Blocks] | None = None
) -> PrimFunc:
    """Return the block computation of one launch.

    Its parameters are those of :mod:`.base`, or ``x, words, scales, sums`` where ``config.splits > 1``:
    fp32 sums per split, not yet scaled (`partial_sums_shape`).
    """
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("gemm_mma")
        T.func_attr({"tirx.noalias": True})
        (blocks or Blocks)(problem, config, group_size).build()
    return builder.get()


class Blocks:
    """Emits the blocks; its methods are in their order, after those that say which rows meet which weight."""

    def __init__(self, problem: MatmulProblem, config: MmaConfig, group_size: int) -> None:
        self.problem, self.config, self.group_size = problem, config, group_size
        self.M = named("M", T.int64())
        self.tiles, self.tiles_k = layout.tiles(problem.N, problem.K)
        self.stages = config.stages_along_k(problem.K)
        self.blocks_n = -(-self.tiles // config.tiles_n)
        # Axes that only some configurations have: schedule primitives drop axes of extent 1 here and there
        self.split: tuple[int, ...] = (config.splits,) if config.splits > 1 else ()
        self.part: tuple[int, ...] = (config.k_warps,) if config.k_warps > 1 else ()
        # Splits leave gate and up to the second launch
        self.gated = problem.activation == "silu_mul" and not self.split
        self._parameters()
        # M < 2**31 rows; only offsets into x and out need 64 bits
        self.rows = T.cast(self.M, "int32")
        self.blocks_m = T.cast((self.M + (config.block_m - 1)) // config.block_m, "int32")

    def _parameters(self) -> None:
        problem, M = self.problem, self.M
        shapes = problem.operands(M)
        shapes["scales"] = (
            (*shapes["scales"][0][:-1], layout.scales_shape(1, 16, self.group_size)[-1]),
            "uint32",
        )
        if self.split:
            shapes = {name: shapes[name] for name in ("x", "words", "scales")}
            shapes["sums"] = partial_sums_shape(problem, self.config, M), "float32"
        else:
            shapes["out"] = (M, problem.out_N), problem.out_dtype
        self.buffers = {name: argument(name, *about) for name, about in shapes.items()}
        self.out = self.buffers["sums" if self.split else "out"]

    @property
    def _weight_blocks(self) -> tuple[Expr | int, ...]:
        """Axes of thread blocks that decoded weights have."""
        return (self.blocks_n,)

    def _weight(self, _outer: Sequence[Expr]) -> tuple[Expr, ...]:
        """Leading indices into the packed arrays, from the leading axes of a staged or summed block."""
        return ()

    def _token(self, vm: Expr, row: Expr) -> Expr:
        """Row of x and of out of a tile's row."""
        return vm * self.config.block_m + row

    def _end(self, _vm: Expr) -> Expr:
        """Where a tile's rows end, at the latest."""
        return self.rows

    def _declare_reads(self, *regions: Expr) -> None:
        """Say what a block of the epilogue reads; by default what TVM finds."""

    def build(self) -> None:
        """Emit all blocks."""
        x, w = self._activations(), self._weights()
        total = self._sums(x, w)
        if self.split or self.problem.out_dtype == "float32":
            self._store_float32(total)
        else:
            self._store_16_bit(total)

    def _stage(self, outer: Sequence[Expr]) -> Expr:
        """Stage along all of K from the leading axes of a staged block, ``[split,] block, stage``."""
        return outer[0] * self.stages + outer[-1] if self.split else outer[-1]

    def _activations(self) -> Buffer:
        c, K = self.config, self.problem.K
        lead = (*self.split, self.blocks_m, self.stages)
        beyond_k = c.splits * self.stages * c.block_k > K

        def staged(*axes: Expr) -> Expr:
            *outer, row, q, slot, e = axes
            token = self._token(outer[-2], row)
            step = self._stage(outer) * c.steps + chunk_of(slot, row, q, c.steps)
            k = (
                step // layout.WORDS_PER_LANE * layout.TILE_K
                + q * LANE_K
                + step % layout.WORDS_PER_LANE * CHUNK
            )
            inside = token < self._end(outer[-2])
            if beyond_k:
                inside = tirx.And(inside, k < K)
            # The comparison is of whole chunks: K is a multiple of 16
            bits = T.reinterpret("uint16", self.buffers["x"][T.cast(token, "int64"), k + e])
            return T.if_then_else(inside, bits, tirx.const(0, "uint16"))

        shared = _block("x_shared", (*lead, c.block_m, 4, c.steps, CHUNK), "uint16", staged)

        def fragment(*axes: Expr) -> Expr:
            *outer, b, i, lane, r = axes
            token, q = lane // 4, lane % 4
            at = (*outer, b * TOKENS + token, q, slot_of(i, token, q, c.steps))
            return mma.register_of(shared[(*at, r * 2)], shared[(*at, r * 2 + 1)])

        return _block("x_lane", (*lead, c.tiles_m, c.steps, layout.LANES, 4), "uint32", fragment)

    def _weights(self) -> Buffer:
        c, dtype = self.config, self.problem.x_dtype
        lead = (*self.split, *self._weight_blocks, self.stages)
        per_block = layout.WORDS_PER_LANE

        def source(outer: Sequence[Expr], t: Expr, block: Expr) -> tuple[Expr, ...]:
            tile = outer[-2] * c.tiles_n + t
            if self.blocks_n * c.tiles_n > self.tiles:
                tile = T.min(tile, self.tiles - 1)
            block = self._stage(outer) * c.steps // per_block + block
            if c.splits * self.stages * c.block_k > self.tiles_k * layout.TILE_K:
                block = T.min(block, self.tiles_k - 1)
            return (*self._weight(outer[:-1]), tile, block)

        def first_word(outer: Sequence[Expr]) -> Expr | int:
            return self._stage(outer) * c.steps % per_block if c.steps < per_block else 0

        def words(*axes: Expr) -> Expr:
            *outer, t, block, h, lane, i = axes
            return self.buffers["words"][(*source(outer, t, block), h, lane, first_word(outer) + i)]

        inner = (c.tiles_n, c.stage_blocks)
        lane_words = (*lead, *inner, 2, layout.LANES, c.stage_words)
        w_shared = _block("w_shared", lane_words, "uint32", words)
        scale_words = self.buffers["scales"].shape[-1]
        s_shared = _block(
            "s_shared",
            (*lead, *inner, scale_words),
            "uint32",
            lambda *axes: self.buffers["scales"][(*source(axes[:-3], *axes[-3:-1]), axes[-1])],
        )
        w_lane = _block("w_lane", lane_words, "uint32", lambda *axes: w_shared[axes])

        group_words = self.group_size // layout.CODES_PER_WORD
        groups = -(-c.stage_words // group_words)

        def scale_bytes(*axes: Expr) -> Expr:
            *outer, t, block, group, lane = axes
            if self.group_size == LANE_K:
                word = s_shared[(*outer, t, block, lane // 2)]
                return fp4_decode.scale_bytes(word, lane % 2, self.group_size)
            return fp4_decode.scale_bytes(
                s_shared[(*outer, t, block, lane)], first_word(outer) // group_words + group
            )

        s_bytes = _block("s_bytes", (*lead, *inner, groups, layout.LANES), "uint32", scale_bytes)
        s_lane = _block(
            "s_lane",
            (*s_bytes.shape, 2),
            "uint32",
            lambda *axes: fp4_decode.decoded_scale(s_bytes[axes[:-1]], axes[-1], dtype),
        )

        def fragment(*axes: Expr) -> Expr:
            *outer, t, i, j, lane, r = axes
            block, word = (i // per_block, i % per_block) if c.stage_blocks > 1 else (0, i)
            word_at = (*outer, t, block, r % 2, lane, word)
            group = word // group_words if groups > 1 else 0
            scale = s_lane[(*outer, t, block, group, lane, r % 2)]
            return fp4_decode.decoded(w_lane[word_at], j * 2 + r // 2, scale, dtype)

        return _block("w", (*lead, c.tiles_n, c.steps, 2, layout.LANES, 4), "uint32", fragment)

    def _sums(self, x: Buffer, w: Buffer) -> Buffer:
        c, dtype = self.config, self.problem.x_dtype
        blocks = (*self.split, self.blocks_m, self.blocks_n)
        tile = (c.tiles_n, c.tiles_m)
        steps = c.steps // c.k_warps
        shape = (*blocks, *self.part, *tile, layout.LANES, 4)
        total = named("sum", T.sblock_alloc_buffer(shape, "float32"))
        reduced = (self.stages, steps, 2)
        with T.grid(*shape[:-2], *reduced, layout.LANES, 4, 16) as loops, T.sblock("sum"):
            spatial, inner = len(shape) - 2, len(loops) - 3
            outer = [T.axis.spatial(e, v) for e, v in zip(shape, loops[:spatial], strict=False)]
            stage, i, j = (T.axis.reduce(e, v) for e, v in zip(reduced, loops[spatial:inner], strict=True))
            lane, r = (T.axis.spatial(e, v) for e, v in zip(shape[-2:], loops[inner:-1], strict=True))
            k = T.axis.reduce(16, loops[-1])
            row, token = mma.c_origin(lane, r)
            a_lane, a_register = mma.a_position(row, k)
            b_lane, b_register = mma.b_position(token, k)
            *split, vm, vn = outer[: len(blocks)]
            t, b = outer[-2:]
            step = outer[len(blocks)] * steps + i if self.part else i
            blocks_w = (vm, vn)[-len(self._weight_blocks) :]
            a = w[(*split, *blocks_w, stage, t, step, j, a_lane, a_register)]
            b_ = x[(*split, vm, stage, b, step, b_lane, j * 2 + b_register)]
            at = (*outer, lane, r)
            T.reads(a, b_)
            T.writes(total[at])
            with T.init():
                T.buffer_store(total, T.float32(0), at)
            product = fp4_decode.half_value(a, k % 2, dtype) * fp4_decode.half_value(b_, k % 2, dtype)
            T.buffer_store(total, total[at] + product, at)
        if not self.part:
            return total
        return self._add_parts(total, (*blocks, *tile, layout.LANES, 4), len(blocks))

    def _add_parts(self, sums: Buffer, shape: tuple, position: int) -> Buffer:
        total = named("total", T.sblock_alloc_buffer(shape, "float32"))
        with T.grid(*shape, *self.part) as loops, T.sblock("total"):
            at = [T.axis.spatial(e, v) for e, v in zip(shape, loops, strict=False)]
            part = T.axis.reduce(self.part[0], loops[-1])
            with T.init():
                T.buffer_store(total, T.float32(0), at)
            T.buffer_store(total, total[at] + sums[(*at[:position], part, *at[position:])], at)
        return total

    def _result(
        self,
        total: Buffer,
        outer: Sequence[Expr],
        tile: tuple[Expr, Expr],
        lane: Expr,
        h: Expr | int,
        e: Expr,
    ) -> Expr:
        """Element of out of row half h and token e of a lane's accumulators."""
        problem = self.problem
        t = outer[-1] * self.config.tiles_n + tile[0]

        def row(half: Expr | int) -> Expr:
            n = t * layout.TILE_N + half * 8 + lane // 4
            bias = self.buffers["bias"][self._within(n, problem.N)] if problem.bias else None
            scale = self.buffers["global_scale"][
                (*self._weight(outer), self._within(n, self.tiles * layout.TILE_N))
            ]
            return epilogue.row_value(total[(*outer, *tile, lane, e * 2 + half)], scale, bias)

        value, up = (row(0), row(1)) if self.gated else (row(h), None)
        elements = slice(e * 2, e * 2 + 2) if self.gated else e * 2 + h
        self._declare_reads(total[(*outer, *tile, lane, elements)])
        residual = None
        if problem.residual:
            token = self._row(outer, tile[1], lane % 4 * 2 + e)
            column = self._column(t, h, lane // 4)
            element = T.cast(self.buffers["residual"][T.cast(token, "int64"), column], "float32")
            residual = T.if_then_else(self._inside(outer, token, column), element, T.float32(0))
        return epilogue.output(problem, value, up, residual)

    def _within(self, n: Expr, limit: int) -> Expr:
        """Clamp a row of W where a block may hang over the end."""
        return T.min(n, limit - 1) if self.blocks_n * self.config.block_n > limit else n

    def _column(self, tile: Expr, h: Expr | int, row: Expr) -> Expr:
        """Column of out of row ``row`` of a tile's half."""
        if self.gated:
            return tile * (layout.TILE_N // 2) + row
        return tile * layout.TILE_N + h * 8 + row

    def _row(self, outer: Sequence[Expr], b: Expr, token: Expr) -> Expr:
        return self._token(outer[len(self.split)], b * TOKENS + token)

    def _inside(self, outer: Sequence[Expr], token: Expr, column: Expr) -> Expr:
        """Whether an element is one of out."""
        columns, computed = int(self.out.shape[-1]), self.blocks_n * self.config.block_n
        if self.gated:
            computed //= 2
        inside = token < self._end(outer[len(self.split)])
        return inside if computed == columns else tirx.And(inside, column < columns)

    @property
    def _blocks(self) -> tuple[Expr | int, ...]:
        return (*self.split, self.blocks_m, self.blocks_n)

    def _store_float32(self, total: Buffer) -> None:
        """Store straight from the accumulators: eight rows of W are 32 consecutive bytes of out."""
        c = self.config
        halves = 1 if self.gated else 2
        shape = (*self._blocks, c.tiles_n, c.tiles_m, 2, *(halves,) * (halves > 1), layout.LANES)
        with T.grid(*shape) as loops, T.sblock("out"):
            *outer, t, b, e, h, lane = self._axes(shape, loops, halves)
            token = self._row(outer, b, lane % 4 * 2 + e)
            if self.split:
                value = total[(*outer, t, b, lane, e * 2 + h)]
            else:
                value = self._result(total, outer, (t, b), lane, h, e)
            self._store(outer, token, self._column(outer[-1] * c.tiles_n + t, h, lane // 4), value)

    def _axes(self, shape: Sequence[Expr | int], loops: Sequence[Expr], halves: int) -> list[Expr]:
        """Spatial axes, with a 0 for the row half where there is but one."""
        axes = [T.axis.spatial(e, v) for e, v in zip(shape, loops, strict=True)]
        return axes if halves > 1 else [*axes[:-1], tirx.const(0, "int32"), axes[-1]]

    def _store(
        self, outer: Sequence[Expr], token: Expr, column: Expr, value: Expr, e: Expr | int = 0
    ) -> None:
        # The bound is checked without e: both elements of a pair are inside, or neither
        with T.If(self._inside(outer, token, column)), T.Then():
            T.buffer_store(self.out, value, [*outer[: len(self.split)], T.cast(token, "int64"), column + e])

    def _store_16_bit(self, total: Buffer) -> None:
        """Transpose in registers, so that a lane has two neighbours of one row of out."""
        c, dtype = self.config, self.problem.out_dtype
        halves = 1 if self.gated else 2
        shape = (*self._blocks, c.tiles_n, c.tiles_m, *(halves,) * (halves > 1), layout.LANES, 2)

        def value(*axes: Expr) -> Expr:
            *outer, t, b, h, lane = (
                axes[:-1] if halves > 1 else (*axes[:-2], tirx.const(0, "int32"), axes[-2])
            )
            return self._result(total, outer, (t, b), lane, h, axes[-1])

        values = _block("value", shape, dtype, value)
        turned = _block(
            "turned",
            shape,
            dtype,
            lambda *axes: values[(*axes[:-2], *mma.turned_from(*axes[-2:]))],
        )
        with T.grid(*shape) as loops, T.sblock("out"):
            axes = [T.axis.spatial(e, v) for e, v in zip(shape, loops, strict=True)]
            *outer, t, b, h, lane = (
                axes[:-1] if halves > 1 else (*axes[:-2], tirx.const(0, "int32"), axes[-2])
            )
            e, pair = axes[-1], lane % 4 * 2
            token = self._row(outer, b, lane // 4)
            tile = outer[-1] * c.tiles_n + t
            self._declare_reads(turned[axes])
            if self.problem.out_N % 2:
                self._store(outer, token, self._column(tile, h, pair + e), turned[axes])
            else:
                self._store(outer, token, self._column(tile, h, pair), turned[axes], e)


def _block(name: str, shape: Sequence[Expr | int], dtype: str, value: Callable[..., Expr]) -> Buffer:
    """Emit a block that computes every element of a new buffer of its name."""
    buffer = named(name, T.sblock_alloc_buffer(shape, dtype))
    with T.grid(*shape) as loops, T.sblock(name):
        axes = [T.axis.spatial(e, v) for e, v in zip(shape, loops, strict=True)]
        T.buffer_store(buffer, value(*axes), axes)
    return buffer
