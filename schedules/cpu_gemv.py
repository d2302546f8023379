"""Up to eight rows of activations on a CPU: every packed word is decoded once, in registers.

One task is a tile of 16 weight rows. Inside a 128-block the codes are multiplied unscaled; the block scale,
which is constant inside a word, multiplies a word's partial sum (or, from `SCALE_WEIGHTS_FROM` activations
on, the decoded weights: whichever takes fewer operations).
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

#: Largest M whose accumulators stay in registers.
MAX_M = 8
SCALE_WEIGHTS_FROM = 5
#: Activations that a tile's rows use in turn, so that they are read from L1 (32 KiB or more).
PIECE_BYTES = 16 * 1024


class CPUGemv(CPURule):
    """GEMV for ``M <= 8`` on llvm targets."""

    name = "cpu-gemv"
    symbol = "nvfp4_cpu_gemv"

    def body(self, problem: MatmulProblem, target: Target) -> Body | None:
        """See `CPURule.body`."""
        if target.kind.name != "llvm":
            return self.refuse(problem, f"the target is {target.kind.name}, not llvm")
        rows = problem.M.high
        if rows is None or rows > MAX_M:
            return self.refuse(problem, f"M may exceed {MAX_M}")
        decoder = decoder_for(target)
        return lambda args: _body(args, decoder, rows)


def _body(args: Arguments, decoder: Decoder, rows: int) -> None:
    lanes = decoder.lanes
    steps = args.steps(lanes)
    xt = named("xt", T.alloc_buffer((steps, layout.CODES_PER_WORD, rows, lanes), "float32"))
    with T.serial(steps) as step:
        transpose_activations(args, xt, (), step, 0, rows, lanes)
    # The rows of one pass share the loads of activations and, in pairs of h, those of scales.
    pairs = 2 if rows <= 2 and decoder.registers >= 32 else 1
    parts = 8 // pairs
    piece_steps = min(steps, max(1, PIECE_BYTES // (layout.CODES_PER_WORD * rows * lanes * 4)))
    with T.parallel(layout.tiles(args.problem.N, 1)[0]) as t:
        sums = named("sums", T.alloc_buffer((parts, 2 * pairs, rows, lanes), "float32"))
        with T.grid(parts, 2 * pairs, rows) as (part, i, m):
            store(sums, zeros(lanes), part, i, m, 0)
        with T.grid(-(-steps // piece_steps), parts) as (piece, part):
            members = [(h, part * pairs + i) for i in range(pairs) for h in range(2)]
            accs = [named("acc", T.alloc_buffer((rows, lanes), "float32")) for _ in members]
            for i, acc in enumerate(accs):
                for m in range(rows):
                    store(acc, load(sums, part, i, m, 0, lanes=lanes), m, 0)
            start = piece * piece_steps
            with T.serial(T.min(piece_steps, steps - start)) as step:
                _step(args, decoder, t, start + step, members, accs, xt)
            for i, acc in enumerate(accs):
                for m in range(rows):
                    store(sums, load(acc, m, 0, lanes=lanes), part, i, m, 0)
        with T.grid(parts, 2 * pairs) as (part, i):
            for m in range(rows):
                total = horizontal_sum(T.Bind(load(sums, part, i, m, 0, lanes=lanes)))
                n = t * layout.TILE_N + i % 2 * 8 + part * pairs + i // 2
                if m < args.problem.M.low:
                    args.write(m, n, total)
                else:
                    with T.If(m < args.M), T.Then():
                        args.write(m, n, total)


def _step(
    args: Arguments,
    decoder: Decoder,
    t: Expr,
    step: Expr,
    members: list[tuple[int, Expr]],
    accs: list[Buffer],
    xt: Buffer,
) -> None:
    """Add one step of K, ``lanes`` words of every member row, to the sums."""
    lanes = decoder.lanes
    rows = int(xt.shape[2])
    scale_weights = rows >= SCALE_WEIGHTS_FROM
    words, factors, partial = [], [], []
    for i, (h, g) in enumerate(members):
        if h == 0:
            scales = T.Bind(decoder.e4m3(args.load_scales(t, g, step, lanes)))
        words.append(T.Bind(args.load_words(t, h, g, step, lanes)))
        factors.append(T.Bind(T.Shuffle([scales], scale_lanes(h, lanes))))
        partial.append([load(accs[i], m, 0, lanes=lanes) for m in range(rows)])
    for j in range(layout.CODES_PER_WORD):
        weights = [T.Bind(decoder.e2m1(word, j)) for word in words]
        if scale_weights:
            weights = [T.Bind(weight * factor) for weight, factor in zip(weights, factors, strict=True)]
        for m in range(rows):
            x = T.Bind(load(xt, step, j, m, 0, lanes=lanes))
            for i, weight in enumerate(weights):
                product = weight * x
                partial[i][m] = T.Bind(partial[i][m] + product if j or scale_weights else product)
    for i, acc in enumerate(accs):
        for m in range(rows):
            value = partial[i][m]
            if not scale_weights:
                value = load(acc, m, 0, lanes=lanes) + value * factors[i]
            store(acc, value, m, 0)
