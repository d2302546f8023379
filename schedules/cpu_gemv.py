"""Up to eight rows of activations on a CPU: every packed word is decoded once, in registers.

One task is a tile of 16 weight rows. Inside a 128-block the codes are multiplied unscaled; the block scale,
which is constant inside a word, multiplies a word's partial sum (or, from `SCALE_WEIGHTS_FROM` activations
on, the decoded weights: whichever takes fewer operations).
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

#: Largest M whose accumulators stay in registers.
MAX_M = 8
SCALE_WEIGHTS_FROM = 5


class CPUGemv(KernelRule):
    """GEMV for ``M <= 8`` on llvm targets."""

    name = "cpu-gemv"

    def apply(self, problem: MatmulProblem, target: Target) -> PrimFunc | None:
        """See `KernelRule.apply`."""
        if target.kind.name != "llvm":
            return self.refuse(problem, f"the target is {target.kind.name}, not llvm")
        if problem.M.high is None or problem.M.high > MAX_M:
            return self.refuse(problem, f"M may exceed {MAX_M}")
        decoder = decoder_for(target)
        return kernel(problem, "nvfp4_cpu_gemv", lambda args: _body(args, decoder, problem.M.high))


def _body(args: Arguments, decoder: Decoder, rows: int) -> None:
    lanes = decoder.lanes
    shape = (args.blocks, layout.TILE_K // lanes, rows, lanes)
    xt = named("xt", T.alloc_buffer(shape, "float32"))
    with T.serial(args.blocks) as c:
        transpose_activations(args, xt, (), c, 0, rows, lanes)
    # Rows (h, g + i) of one step share the loads of activations and, in pairs of h, those of scales.
    pairs = 2 if rows <= 2 and decoder.registers >= 32 else 1
    with T.parallel(layout.tiles(args.problem.N, 1)[0]) as t, T.serial(8 // pairs) as step:
        members = [(h, step * pairs + i) for i in range(pairs) for h in range(2)]
        sums = [named("acc", T.alloc_buffer((rows, lanes), "float32")) for _ in members]
        for acc in sums:
            for m in range(rows):
                store(acc, zeros(lanes), m, 0)
        with T.serial(args.blocks) as c:
            _block(args, decoder, rows, t, c, members, sums, xt)
        for (h, g), acc in zip(members, sums, strict=True):
            for m in range(rows):
                total = horizontal_sum(T.Bind(load(acc, m, 0, lanes=lanes)))
                n = t * layout.TILE_N + h * 8 + g
                if m < args.problem.M.low:
                    args.write(m, n, total)
                else:
                    with T.If(m < args.M), T.Then():
                        args.write(m, n, total)


def _block(
    args: Arguments,
    decoder: Decoder,
    rows: int,
    t: Expr,
    c: Expr,
    members: list[tuple[int, Expr]],
    sums: list[Buffer],
    xt: Buffer,
) -> None:
    """Add one 128-block of K to the sums of the member rows."""
    lanes = decoder.lanes
    scales = [T.Bind(decoder.e4m3(args.load_scales(t, c, g))) for _, g in members[::2]]
    for s in range(ROW_WORDS // lanes):
        words, factors, partial = [], [], []
        for i, (h, g) in enumerate(members):
            words.append(T.Bind(args.load_words(t, c, h, g, s * lanes, lanes)))
            factors.append(T.Bind(T.Shuffle([scales[i // 2]], scale_lanes(h, s * lanes, lanes))))
            partial.append([load(sums[i], m, 0, lanes=lanes) for m in range(rows)])
        scale_weights = rows >= SCALE_WEIGHTS_FROM
        for j in range(layout.CODES_PER_WORD):
            x = [T.Bind(load(xt, c, s * layout.CODES_PER_WORD + j, m, 0, lanes=lanes)) for m in range(rows)]
            for i in range(len(members)):
                weight = T.Bind(decoder.e2m1(words[i], j))
                if scale_weights:
                    weight = T.Bind(weight * factors[i])
                for m in range(rows):
                    if j == 0 and not scale_weights:
                        partial[i][m] = T.Bind(weight * x[m])
                    else:
                        partial[i][m] = T.Bind(partial[i][m] + weight * x[m])
        for i in range(len(members)):
            for m in range(rows):
                value = partial[i][m]
                if not scale_weights:
                    value = load(sums[i], m, 0, lanes=lanes) + value * factors[i]
                store(sums[i], value, m, 0)
