"""Any number of rows of activations on a CPU: decode a block of weights to L1 once, use it for many rows.

Activations are taken in chunks of `CHUNK_M` rows, transposed once into an L2-sized scratch. One task is a
tile of 16 weight rows. For each piece of K it decodes 16 rows, scaled, into thread-local scratch that fits
L1, and runs a register tile of `TILE_ROWS` weight rows by several activation rows over it.
"""

from __future__ import annotations

from tvm.target import Target
from tvm.tirx import Buffer, Expr
from tvm.tirx.script.builder import ir as T

from nvfp4_tvm import layout
from nvfp4_tvm.schedules.base import MatmulProblem
from nvfp4_tvm.schedules.cpu_common import (
    Arguments,
    Body,
    CPURule,
    horizontal_sum,
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
#: Codes along K decoded at once: 16 rows * 512 * 4 bytes = 32 KiB.
PIECE_K = 512


class CPUGemm(CPURule):
    """Blocked matmul for any M on llvm targets."""

    name = "cpu-gemm"
    symbol = "nvfp4_cpu_gemm"

    def body(self, problem: MatmulProblem, target: Target) -> Body | None:
        """See `CPURule.body`."""
        if target.kind.name != "llvm":
            return self.refuse(problem, f"the target is {target.kind.name}, not llvm")
        decoder = decoder_for(target)
        return lambda args: _body(args, decoder)


def _body(args: Arguments, decoder: Decoder) -> None:
    # A register tile holds TILE_ROWS x tile_m accumulators, TILE_ROWS weights and one activation.
    tile_m = 6 if decoder.registers >= 32 else 2
    chunk = CHUNK_M
    if args.problem.M.high is not None:
        chunk = min(chunk, -(-args.problem.M.high // tile_m) * tile_m)
    lanes = decoder.lanes
    steps = args.steps(lanes)
    xt_shape = (chunk // tile_m, steps, layout.CODES_PER_WORD, tile_m, lanes)
    xt = named("xt", T.alloc_buffer(xt_shape, "float32"))
    with T.serial((args.M + (chunk - 1)) // chunk) as chunk_index:
        first = T.Bind(chunk_index * chunk)
        tiles_m = T.Bind((T.min(args.M - first, chunk) + (tile_m - 1)) // tile_m)
        with T.parallel(steps) as step, T.serial(tiles_m) as mb:
            transpose_activations(args, xt, (mb,), step, first + mb * tile_m, tile_m, lanes)
        with T.parallel(layout.tiles(args.problem.N, 1)[0]) as t:
            _tile(args, decoder, t, first, tiles_m, xt)


def _tile(args: Arguments, decoder: Decoder, t: Expr, first: Expr, tiles_m: Expr, xt: Buffer) -> None:
    """Compute 16 columns of ``out`` for the rows of one chunk."""
    lanes = decoder.lanes
    max_tiles, steps, codes, tile_m, _ = (int(extent) for extent in xt.shape)
    piece_steps = PIECE_K // (codes * lanes)
    groups = layout.TILE_N // TILE_ROWS
    sums = named("sums", T.alloc_buffer((max_tiles, groups, TILE_ROWS, tile_m, lanes), "float32"))
    weights = named("weights", T.alloc_buffer((groups, piece_steps, codes, TILE_ROWS, lanes), "float32"))
    with T.grid(tiles_m, groups) as (mb, group):
        for r in range(TILE_ROWS):
            for m in range(tile_m):
                store(sums, zeros(lanes), mb, group, r, m, 0)
    with T.serial(-(-steps // piece_steps)) as piece:
        start = piece * piece_steps
        count = T.Bind(T.min(piece_steps, steps - start))
        with T.grid(groups, count) as (group, s):
            _decode(args, decoder, t, start, s, group, weights)
        with T.grid(tiles_m, groups) as (mb, group):
            registers = [named("acc", T.alloc_buffer((tile_m, lanes), "float32")) for _ in range(TILE_ROWS)]
            for r, acc in enumerate(registers):
                for m in range(tile_m):
                    store(acc, load(sums, mb, group, r, m, 0, lanes=lanes), m, 0)
            with T.grid(count, codes) as (s, j):
                w = [T.Bind(load(weights, group, s, j, r, 0, lanes=lanes)) for r in range(TILE_ROWS)]
                for m in range(tile_m):
                    x = T.Bind(load(xt, mb, start + s, j, m, 0, lanes=lanes))
                    for r, acc in enumerate(registers):
                        store(acc, load(acc, m, 0, lanes=lanes) + w[r] * x, m, 0)
            for r, acc in enumerate(registers):
                for m in range(tile_m):
                    store(sums, load(acc, m, 0, lanes=lanes), mb, group, r, m, 0)
    with T.grid(tiles_m, tile_m) as (mb, m):
        row = first + mb * tile_m + m
        with T.If(row < args.M), T.Then(), T.grid(groups, TILE_ROWS) as (group, r):
            total = horizontal_sum(T.Bind(load(sums, mb, group, r, m, 0, lanes=lanes)))
            g = group * (TILE_ROWS // 2) + r // 2
            args.write(row, t * layout.TILE_N + r % 2 * 8 + g, total)


def _decode(
    args: Arguments, decoder: Decoder, t: Expr, start: Expr, s: Expr, group: Expr, weights: Buffer
) -> None:
    """Decode TILE_ROWS rows of step ``start + s``, scaled, to ``weights[group, s]``; row r has h = r % 2."""
    lanes = decoder.lanes
    for r in range(TILE_ROWS):
        h, g = r % 2, group * (TILE_ROWS // 2) + r // 2
        if h == 0:
            scales = T.Bind(decoder.e4m3(args.load_scales(t, g, start + s, lanes)))
        words = T.Bind(args.load_words(t, h, g, start + s, lanes))
        factor = T.Bind(T.Shuffle([scales], scale_lanes(h, lanes)))
        for j in range(layout.CODES_PER_WORD):
            store(weights, decoder.e2m1(words, j) * factor, group, s, j, r, 0)
