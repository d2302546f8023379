"""Any number of rows of activations on a CPU: decode a block of weights to L1 once, use it for many rows.

Activations are taken in chunks of `CHUNK_M` rows, transposed once into an L2-sized scratch. One task is a
tile of 16 weight rows. For each piece of K it decodes 16 rows, scaled, into thread-local scratch that fits
L1, and runs a register tile of `TILE_ROWS` weight rows by several activation rows over it.
"""

from __future__ import annotations

from tvm.target import Target
from tvm.tirx import Buffer, Expr, PrimFunc
from tvm.tirx.script.builder import ir as T

from nvfp4_tvm import layout
from nvfp4_tvm.schedules.base import KernelRule, MatmulProblem
from nvfp4_tvm.schedules.cpu_common import (
    ROW_WORDS,
    Arguments,
    horizontal_sum,
    kernel,
    load,
    named,
    scale_lanes,
    store,
    transpose_activations,
    zeros,
)
from nvfp4_tvm.schedules.intrin.cpu_decode import Decoder, decoder_for

#: Rows of activations per pass over the weights; at K = 4096 their float32 scratch is 1.5 MiB.
CHUNK_M = 96
#: Weight rows of a register tile: rows g, g + 1 of both halves.
TILE_ROWS = 4
#: 128-blocks of K decoded at once: 16 rows * 256 * 4 bytes = 16 KiB.
BLOCKS = 2


class CPUGemm(KernelRule):
    """Blocked matmul for any M on llvm targets."""

    name = "cpu-gemm"

    def apply(self, problem: MatmulProblem, target: Target) -> PrimFunc | None:
        """See `KernelRule.apply`."""
        if target.kind.name != "llvm":
            return self.refuse(problem, f"the target is {target.kind.name}, not llvm")
        decoder = decoder_for(target)
        return kernel(problem, "nvfp4_cpu_gemm", lambda args: _body(args, decoder))


def _body(args: Arguments, decoder: Decoder) -> None:
    # Register tile TILE_ROWS x tile_m of accumulators, one column of weights and one activation besides.
    tile_m = 6 if decoder.registers >= 32 else 2
    chunk = CHUNK_M
    if args.problem.M.high is not None:
        chunk = min(chunk, -(-args.problem.M.high // tile_m) * tile_m)
    lanes = decoder.lanes
    xt_shape = (chunk // tile_m, args.blocks, layout.TILE_K // lanes, tile_m, lanes)
    xt = named("xt", T.alloc_buffer(xt_shape, "float32"))
    with T.serial((args.M + (chunk - 1)) // chunk) as chunk_index:
        first = T.Bind(chunk_index * chunk)
        tiles_m = T.Bind((T.min(args.M - first, chunk) + (tile_m - 1)) // tile_m)
        with T.parallel(args.blocks) as c, T.serial(tiles_m) as mb:
            transpose_activations(args, xt, (mb,), c, first + mb * tile_m, tile_m, lanes)
        with T.parallel(layout.tiles(args.problem.N, 1)[0]) as t:
            _tile(args, decoder, t, first, tiles_m, xt)


def _tile(args: Arguments, decoder: Decoder, t: Expr, first: Expr, tiles_m: Expr, xt: Buffer) -> None:
    """Compute 16 columns of ``out`` for the rows of one chunk."""
    lanes = decoder.lanes
    max_tiles, _, block_steps, tile_m, _ = (int(extent) for extent in xt.shape)
    groups = layout.TILE_N // TILE_ROWS
    sums = named("sums", T.alloc_buffer((max_tiles, groups, TILE_ROWS, tile_m, lanes), "float32"))
    weights = named("weights", T.alloc_buffer((groups, BLOCKS * block_steps, TILE_ROWS, lanes), "float32"))
    with T.grid(tiles_m, groups) as (mb, group):
        for r in range(TILE_ROWS):
            for m in range(tile_m):
                store(sums, zeros(lanes), mb, group, r, m, 0)
    with T.serial(-(-args.blocks // BLOCKS)) as piece:
        blocks = T.Bind(T.min(BLOCKS, args.blocks - piece * BLOCKS))
        with T.grid(groups, blocks) as (group, b):
            _decode(args, decoder, t, piece * BLOCKS + b, group, weights, b * block_steps)
        with T.grid(tiles_m, groups) as (mb, group):
            registers = [named("acc", T.alloc_buffer((tile_m, lanes), "float32")) for _ in range(TILE_ROWS)]
            for r, acc in enumerate(registers):
                for m in range(tile_m):
                    store(acc, load(sums, mb, group, r, m, 0, lanes=lanes), m, 0)
            with T.grid(blocks, block_steps) as (b, step):
                at = b * block_steps + step
                w = [T.Bind(load(weights, group, at, r, 0, lanes=lanes)) for r in range(TILE_ROWS)]
                for m in range(tile_m):
                    x = T.Bind(load(xt, mb, piece * BLOCKS + b, step, m, 0, lanes=lanes))
                    for r, acc in enumerate(registers):
                        store(acc, load(acc, m, 0, lanes=lanes) + w[r] * x, m, 0)
            for r, acc in enumerate(registers):
                for m in range(tile_m):
                    store(sums, load(acc, m, 0, lanes=lanes), mb, group, r, m, 0)
    with T.grid(tiles_m, tile_m) as (mb, m):
        row = first + mb * tile_m + m
        with T.If(row < args.M), T.Then(), T.grid(groups, TILE_ROWS) as (group, r):
            total = horizontal_sum(T.Bind(load(sums, mb, group, r, m, 0, lanes=lanes)))
            h, pair = r % 2, r // 2
            args.write(row, t * layout.TILE_N + h * 8 + group * (TILE_ROWS // 2) + pair, total)


def _decode(
    args: Arguments, decoder: Decoder, t: Expr, c: Expr, group: Expr, weights: Buffer, start: Expr
) -> None:
    """Decode TILE_ROWS rows of 128-block c, scaled, to ``weights[group, start ..]``; row r is half r % 2."""
    lanes = decoder.lanes
    for pair in range(TILE_ROWS // 2):
        g = group * (TILE_ROWS // 2) + pair
        scales = T.Bind(decoder.e4m3(args.load_scales(t, c, g)))
        for h in range(2):
            for s in range(ROW_WORDS // lanes):
                words = T.Bind(args.load_words(t, c, h, g, s * lanes, lanes))
                factor = T.Bind(T.Shuffle([scales], scale_lanes(h, s * lanes, lanes)))
                for j in range(layout.CODES_PER_WORD):
                    step = start + s * layout.CODES_PER_WORD + j
                    store(weights, decoder.e2m1(words, j) * factor, group, step, pair * 2 + h, 0)
