"""Matmul on Intel AMX: weights decoded to bfloat16 tiles, activations as one to three bfloat16 terms.

Code times block scale is exactly a bfloat16 number. So are the activations' terms: bfloat16 has one; float16
and float32 are cut into two and three, each the leading 8 bits of what is left. All products are then exact,
and only their float32 sums round, for every dtype of activations.

Step (c, p) of K is pair p of the codes of every word of 128-block c: ``k = 128c + 8w + 2p`` and the next, for
w = 0..15. Decoding gives a weight row of such a step as one vector, which is a row of the tile.
"""

from __future__ import annotations

from tvm.target import Target
from tvm.tirx import Buffer, Expr
from tvm.tirx.script.builder import ir as T
from tvm.tirx.script.builder.frame import IfFrame

from nvfp4_tvm import layout
from nvfp4_tvm.schedules.base import MatmulProblem
from nvfp4_tvm.schedules.cpu_common import (
    ROW_WORDS,
    Arguments,
    Body,
    CPURule,
    named,
    scale_lanes,
    store,
)
from nvfp4_tvm.schedules.intrin import amx
from nvfp4_tvm.schedules.intrin.cpu_decode import Decoder, decoder_for

#: bfloat16 terms of 8 significant bits that hold an activation exactly.
TERMS = {"bfloat16": 1, "float16": 2, "float32": 3}
#: Rows of activations for which the weights are decoded once, by terms: their tiles should stay in L2.
CHUNK_M = {1: 128, 2: 64, 3: 64}
#: Tile registers: two weight tiles by two activation tiles of accumulators, and the factors, so that every
#: tile that is loaded is used twice.
ACCUMULATORS, WEIGHTS, ACTIVATIONS = ((0, 1), (2, 3)), (4, 5), (6, 7)
PAIRS = layout.CODES_PER_WORD // 2


class CPUGemmAMX(CPURule):
    """Matmul for any M on x86-64 processors with AMX."""

    name = "cpu-gemm-amx"
    symbol = "nvfp4_cpu_gemm_amx"

    def body(self, problem: MatmulProblem, target: Target) -> Body | None:
        """See `CPURule.body`."""
        if target.kind.name != "llvm":
            return self.refuse(problem, f"the target is {target.kind.name}, not llvm")
        if not amx.has_amx(target):
            return self.refuse(problem, "the target has no AMX")
        decoder = decoder_for(target)
        if decoder.lanes != ROW_WORDS:
            return self.refuse(problem, "the target has no AVX-512")
        return lambda args: _body(args, decoder)


def _body(args: Arguments, decoder: Decoder) -> None:
    tile_m = amx.TILE_ROWS
    high = args.problem.M.high
    terms = TERMS[args.problem.x_dtype]
    chunk = CHUNK_M[terms]
    if high is not None:
        chunk = min(chunk, -(-high // tile_m) * tile_m)
    shape = (chunk // tile_m, args.blocks, PAIRS, terms, ROW_WORDS, tile_m)
    xt = named("xt", T.alloc_buffer(shape, amx.SCRATCH))
    amx.request_permission()
    with T.serial((args.M + (chunk - 1)) // chunk) as chunk_index:
        first = T.Bind(chunk_index * chunk)
        tiles_m = T.Bind((T.min(args.M - first, chunk) + (tile_m - 1)) // tile_m)
        with T.parallel(args.blocks) as c, T.grid(tiles_m, tile_m) as (mb, m):
            _activation_row(args, xt, mb, c, m, first + mb * tile_m + m)
        tiles_n = layout.tiles(args.problem.N, 1)[0]
        with T.parallel(-(-tiles_n // 2)) as pair:
            # Of an odd number the last tile is computed twice, to the same numbers.
            _tiles(args, decoder, (pair * 2, T.min(pair * 2 + 1, tiles_n - 1)), first, tiles_m, xt)


def _activation_row(args: Arguments, xt: Buffer, mb: Expr, c: Expr, m: Expr, row: Expr) -> None:
    """Write 128 activations of a row as pairs of bfloat16 bits, even k low; zeros outside of x."""
    terms = int(xt.shape[3])
    with T.grid(ROW_WORDS, PAIRS) as (w, pair):
        halves = []
        for odd in range(2):
            k = c * layout.TILE_K + w * layout.CODES_PER_WORD + pair * 2 + odd
            value = args.x[row, k]
            if args.problem.x_dtype == "bfloat16":
                # By its bits: TVM 0.27 mistakes a bfloat16 cast inside a reinterpretation for an integer.
                value = T.reinterpret("float32", T.cast(T.reinterpret("uint16", value), "uint32") << 16)
            else:
                value = T.cast(value, "float32")
            if args.problem.M.static is None or args.problem.M.static % amx.TILE_ROWS:
                value = T.if_then_else(row < args.M, value, T.float32(0))
            if args.problem.K % layout.TILE_K:
                value = T.if_then_else(k < args.problem.K, value, T.float32(0))
            halves.append(_terms(T.Bind(value), terms))
        for term, (even, odd) in enumerate(zip(*halves, strict=True)):
            T.buffer_store(xt, T.reinterpret(amx.SCRATCH, (even >> 16) | odd), [mb, c, pair, term, w, m])


def _terms(value: Expr, count: int) -> list[Expr]:
    """Cut a float32 into numbers of 8 significant bits, as float32 bits whose low half is zero."""
    result = []
    for term in range(count):
        bits = T.Bind(T.reinterpret("uint32", value) & T.uint32(0xFFFF0000))
        result.append(bits)
        if term < count - 1:
            value = T.Bind(value - T.reinterpret("float32", bits))
    return result


def _tiles(
    args: Arguments, decoder: Decoder, ts: tuple[Expr, Expr], first: Expr, tiles_m: Expr, xt: Buffer
) -> None:
    """Compute the columns of ``out`` of two weight tiles for the rows of one chunk."""
    max_tiles, blocks, pairs, terms, _, tile_m = (int(extent) for extent in xt.shape)
    amx.configure(named("config", T.alloc_buffer((16,), amx.SCRATCH)))
    weights = named("weights", T.alloc_buffer((blocks, pairs, 2, layout.TILE_N, ROW_WORDS), amx.SCRATCH))
    sums = named("sums", T.alloc_buffer((layout.TILE_N, tile_m), amx.SCRATCH))
    with T.serial((tiles_m + 1) // 2) as group:
        columns = range(min(2, max_tiles))

        def present(j: int) -> IfFrame:
            return T.If(group * 2 + j < tiles_m)

        for i in range(2):
            for j in columns:
                amx.zero(ACCUMULATORS[i][j])
        with T.serial(blocks) as c:
            # In the first group, so that decoding a block overlaps with the products of the one before.
            with T.If(group == 0), T.Then(), T.serial(8) as g:
                for i, t in enumerate(ts):
                    _decode(args, decoder, t, c, g, weights, i)
            for pair in range(pairs):
                for i in range(2):
                    amx.load_tile(WEIGHTS[i], weights, c, pair, i, 0, 0)
                for j in columns:
                    with present(j), T.Then():
                        for term in range(terms):
                            amx.load_tile(ACTIVATIONS[j], xt, group * 2 + j, c, pair, term, 0, 0)
                            for i in range(2):
                                amx.multiply(ACCUMULATORS[i][j], WEIGHTS[i], ACTIVATIONS[j])
        for i, t in enumerate(ts):
            for j in columns:
                with present(j), T.Then():
                    amx.store_tile(ACCUMULATORS[i][j], sums, 0, 0)
                    with T.serial(tile_m) as m:
                        row = first + (group * 2 + j) * tile_m + m
                        with T.If(row < args.M), T.Then(), T.serial(layout.TILE_N) as r:
                            args.write(row, t * layout.TILE_N + r, sums[r, m])
    amx.release()


def _decode(args: Arguments, decoder: Decoder, t: Expr, c: Expr, g: Expr, weights: Buffer, i: int) -> None:
    """Decode block c of rows g and g + 8 of tile t, scaled, to pairs of bfloat16 bits in ``weights[.., i]``."""
    scales = T.Bind(decoder.e4m3(args.load_scales(t, g, c, ROW_WORDS)))
    for h in range(2):
        words = T.Bind(args.load_words(t, h, g, c, ROW_WORDS))
        factor = T.Bind(T.Shuffle([scales], scale_lanes(h, ROW_WORDS)))
        for pair in range(PAIRS):
            even, odd = (
                T.Bind(T.reinterpret(f"uint32x{ROW_WORDS}", decoder.e2m1(words, 2 * pair + half) * factor))
                for half in range(2)
            )
            bits = T.reinterpret(f"{amx.SCRATCH}x{ROW_WORDS}", (even >> 16) | odd)
            store(weights, bits, c, pair, i, h * 8 + g, 0)
