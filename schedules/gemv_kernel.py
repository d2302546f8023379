"""The GEMV kernel: up to 32 rows of activations, weights streamed from memory through registers.

out^T = W x^T on ``mma.m16n8k16``: a tile of 16 weight rows is the A operand, eight rows of activations (tokens)
are the n8 side of B. A block owns ``NT`` neighbouring tiles; its ``KS`` warps share K among them, and their sums
meet in shared memory at the end. A lane's weights are 16-byte loads that are decoded in registers; its activations
are 16-byte loads that are mma operands as they are (see :mod:`nvfp4_tvm.layout`).

Memory that must not be read is not: activations beyond row M are clamped to row M - 1, whose sums are dropped, and
those beyond K are zeros that were never loaded. A weight tile beyond the last one is clamped likewise.

On experts (:mod:`.grouped`) the grid has a second axis, tiles of rows, and a block finds its expert and rows from
``indptr`` first of all.

Programmatic dependent launch (PTX ISA, ``griddepcontrol``): a kernel may begin while its predecessor runs. Weights
are constants and are loaded before the wait; everything another kernel may have written is touched after it. The
trigger that lets the successor begin comes after the wait: whatever ran before the predecessor is then complete
when the successor begins, so only weights written by the kernel directly before could be read too early. Which
expert's weights are read was written lately, too: on experts everything comes after the wait.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from nvfp4_tvm import layout
from nvfp4_tvm.arch import MAX_THREADS_PER_BLOCK, STATIC_SHARED_BYTES
from nvfp4_tvm.schedules.base import MatmulProblem
from nvfp4_tvm.schedules.epilogue import output, row_value
from nvfp4_tvm.schedules.grouped import GroupedProblem
from nvfp4_tvm.schedules.intrin.expert_tile import cuda_tile
from nvfp4_tvm.schedules.intrin.fp4_decode import cuda_decoder, decode_name, scales_name
from nvfp4_tvm.schedules.intrin.mma_sync import LOAD_WEIGHTS, LOAD_X, TOKENS, mma_name
from nvfp4_tvm.schedules.split_warps import SplitWarps

# Coherent, as `LOAD_X`: the predecessor may write the residual while this kernel runs.
_LOAD_RESIDUAL = {"float32": "ld.global.u32", "bfloat16": "ld.global.u16", "float16": "ld.global.u16"}


@dataclass(frozen=True)
class GemvConfig(SplitWarps):
    """Shape of a GEMV kernel; its warps take runs of 128-blocks.

    Attributes
    ----------
    D : int
        128-blocks of all its tiles that a warp has in registers or on their way there.
    unroll : int
        128-blocks of a turn of the main loop, a multiple of D; more than there are: no loop.
    resident : int
        Blocks that the compiler must make fit on an SM at the same time; 0 leaves registers to it.
    pdl : bool
        Whether the kernel takes part in programmatic dependent launch.
    """

    NT: int = 1
    D: int = 2
    unroll: int = 16
    resident: int = 0
    pdl: bool = False

    def __post_init__(self) -> None:
        assert 1 <= self.KS and self.threads <= MAX_THREADS_PER_BLOCK, self
        assert self.NT >= 1 and self.D >= 1 and self.resident >= 0, self
        assert self.unroll >= self.D and self.unroll % self.D == 0, self
        assert self.shared_bytes <= STATIC_SHARED_BYTES, self

    def blocks(self, N: int) -> int:
        """Blocks of the grid for N weight rows."""
        return -(-N // self.rows)

    def steps(self, K: int) -> int:
        """128-blocks of K that a warp works through, at most."""
        return -(-layout.tiles(1, K)[1] // self.KS)

    def __str__(self) -> str:
        launch = "_pdl" if self.pdl else ""
        return f"ks{self.KS}_nt{self.NT}_d{self.D}_u{self.unroll}_r{self.resident}{launch}"


def gemv(problem: MatmulProblem, NB: int, config: GemvConfig) -> tuple[PrimFunc, tuple[str, ...]]:
    """Return the kernel for ``M <= 8 * NB``, and the names of its arguments.

    Parameters
    ----------
    problem : MatmulProblem
        Of bfloat16 or float16 activations.
    NB : int
        Eights of tokens.
    config : GemvConfig
    """
    N, K, out_N = problem.N, problem.K, problem.out_N
    dtype = problem.x_dtype
    tiles, steps_k = layout.tiles(N, K)
    KS, NT, NTHREADS = config.KS, config.NT, config.threads
    steps = config.steps(K)
    D = min(config.D, steps)
    turn_steps = min(config.unroll // config.D * D, -(-steps // D) * D)
    turns = -(-steps // turn_steps)
    whole_k = steps_k % KS == 0
    whole_turns = steps % turn_steps == 0
    whole_tiles = tiles % NT == 0
    whole_x = K % layout.TILE_K == 0
    gated = problem.activation is not None
    # Output columns of a tile, and of a block
    tile_columns = layout.TILE_N // 2 if gated else layout.TILE_N
    columns = tile_columns * NT
    whole_columns = out_N % columns == 0
    load_words, load_scales = LOAD_WEIGHTS + ".v4.u32", LOAD_WEIGHTS + ".u32"
    mma = mma_name(dtype)
    decoder, decode, decode_scales = cuda_decoder(dtype), decode_name(dtype), scales_name(dtype)
    raw = "uint32" if problem.out_dtype == "float32" else "uint16"
    rounds = -(-TOKENS * columns // NTHREADS)
    whole_rounds = TOKENS * columns % NTHREADS == 0
    M = tirx.Var("M", "int64")
    grouped = isinstance(problem, GroupedProblem)
    shared_x = False
    row_tiles, find_tile, tile_source = tirx.const(1, "int64"), "", ""
    if isinstance(problem, GroupedProblem):
        shared_x = problem.shared_x
        row_tiles = problem.max_tiles(M, NB * TOKENS)
        find_tile, tile_source = cuda_tile(problem, NB * TOKENS)
    shapes = {name: shape for name, (shape, _) in problem.operands(M).items()}
    x_shape, rows_shape, indptr_shape = shapes["x"], shapes["global_scale"], shapes.get("indptr", (1,))
    words_shape, scales_shape = shapes["words"], shapes["scales"]

    # fmt: off
    @T.prim_func
    def kernel(
        x: T.Buffer(x_shape, dtype),
        words: T.Buffer(words_shape, "uint32"),
        scales: T.Buffer(scales_shape, "uint32"),
        global_scale: T.Buffer(rows_shape, "float32"),
        bias: T.Buffer((N,), dtype),
        residual: T.Buffer((M, out_N), problem.out_dtype),
        indptr: T.Buffer(indptr_shape, "int32"),
        out: T.Buffer((M, out_N), problem.out_dtype),
    ):
        T.device_entry()
        if config.resident > 0:
            T.attr(0, "tirx.launch_bounds_min_blocks_per_sm", config.resident)
        if grouped:
            bx, by = T.cta_id([config.blocks(N), T.cast(row_tiles, "int32")])
        else:
            bx = T.cta_id([config.blocks(N)])
        tx = T.thread_id([NTHREADS])
        ks: T.let = tx // 32
        lane: T.let = tx % 32
        g: T.let = lane // 4
        q: T.let = lane % 4
        if grouped:
            where = T.alloc_local((3,), "int32")       # expert, first row, end
            if config.pdl:
                T.ptx.griddepcontrol.wait()
            T.evaluate(T.cuda.func_call(
                find_tile, where[0], where[1], where[2], indptr.ptr_to([0] * len(indptr_shape)), by, T.cast(M, "int32"),
                source_code=tile_source))
        expert = T.meta_var([where[0]] if grouped else [])
        first_row = T.meta_var(where[1] if grouped else 0)
        tokens: T.let = where[2] - where[1] if grouped else T.cast(M, "int32")
        # The warp's run of 128-blocks: its first, and how many
        first: T.let = ks * steps_k // KS
        count: T.let = (ks + 1) * steps_k // KS - first
        partial = T.alloc_shared((KS, TOKENS, config.shared_stride), "float32")
        w = T.alloc_local((D, NT, 2, 4), "uint32")     # [slot, tile, h, i]
        s = T.alloc_local((D, NT), "uint32")           # [slot, tile]
        xf = T.alloc_local((NB, 4), "uint32")          # [eight, register]
        acc = T.alloc_local((NT, NB, 4), "float32")
        sf = T.alloc_local((NT, 2, 2), "uint32")       # [tile, group, h]
        wf = T.alloc_local((2, 4), "uint32")           # [h, pair]
        total = T.alloc_local((2,), "float32")
        added = T.alloc_local((1,), raw)

        @T.inline
        def load(slot, step):
            if whole_k or step < count:
                for t in T.unroll(NT):
                    tile = T.meta_var(bx * NT + t if whole_tiles else T.min(bx * NT + t, tiles - 1))
                    for h in T.unroll(2):
                        T.ptx[load_words](
                            *[w[slot, t, h, i] for i in range(4)], words.ptr_to([*expert, tile, first + step, h, lane, 0]))
                    T.ptx[load_scales](s[slot, t], scales.ptr_to([*expert, tile, first + step, lane]))

        @T.inline
        def load_x(step, i):
            for b in T.unroll(NB):
                row = T.meta_var(0 if shared_x else first_row + T.min(b * TOKENS + g, tokens - 1))
                k = T.meta_var((first + step) * 128 + q * 32 + i * 8)
                if whole_x:
                    T.ptx[LOAD_X](*[xf[b, j] for j in range(4)], x.ptr_to([row, k]))
                else:
                    for j in T.unroll(4):
                        xf[b, j] = T.uint32(0)
                    if k < K:
                        T.ptx[LOAD_X](*[xf[b, j] for j in range(4)], x.ptr_to([row, k]))

        @T.inline
        def compute(slot, step):
            for t in T.unroll(NT):
                T.evaluate(T.cuda.func_call(
                    decode_scales, sf[t, 0, 0], sf[t, 0, 1], sf[t, 1, 0], sf[t, 1, 1], s[slot, t],
                    source_code=decoder))
            for i in T.unroll(4):
                load_x(step, i)
                for t in T.unroll(NT):
                    for h in T.unroll(2):
                        T.evaluate(T.cuda.func_call(
                            decode, wf[h, 0], wf[h, 1], wf[h, 2], wf[h, 3], w[slot, t, h, i], sf[t, i // 2, h],
                            source_code=decoder))
                    for j in T.unroll(2):
                        for b in T.unroll(NB):
                            T.ptx[mma](*[acc[t, b, z] for z in range(4)],
                                       wf[0, 2 * j], wf[1, 2 * j], wf[0, 2 * j + 1], wf[1, 2 * j + 1],
                                       xf[b, 2 * j], xf[b, 2 * j + 1], *[acc[t, b, z] for z in range(4)])

        for t in T.unroll(NT):
            for b in T.unroll(NB):
                for z in T.unroll(4):
                    acc[t, b, z] = T.float32(0)
        for slot in T.unroll(D):
            load(slot, slot)
        # The epilogue would wait for it. A branch on memory also keeps ptxas from moving the first loads of weights
        # behind the wait below.
        if tx < NT:
            tile: T.let = bx * NT + tx
            T.ptx["prefetch.global.L2"](
                global_scale.ptr_to([*expert, (tile if whole_tiles else T.min(tile, tiles - 1)) * layout.TILE_N]))
        if config.pdl and not grouped:
            T.ptx.griddepcontrol.wait()
        for turn in T.serial(turns):
            for r in T.unroll(turn_steps):
                step = T.meta_var(turn * turn_steps + r)
                if (whole_k and whole_turns) or step < (steps if whole_k else count):
                    compute(r % D, step)
                if step + D < steps:
                    load(r % D, step + D)
        if config.pdl:
            T.ptx.griddepcontrol.launch_dependents()
        for b in T.unroll(NB):
            if b > 0:
                T.cuda.cta_sync()
            for t in T.unroll(NT):
                for z in T.unroll(4):
                    partial[ks, q * 2 + z % 2, t * 16 + z // 2 * 8 + g] = acc[t, b, z]
            T.cuda.cta_sync()
            for turn in T.unroll(rounds):
                index: T.let = turn * NTHREADS + tx
                token: T.let = b * TOKENS + index // columns
                column: T.let = bx * columns + index % columns
                # Row in the block, of the gate where there is one
                row: T.let = index % columns // tile_columns * 16 + index % tile_columns
                if ((whole_rounds or index < TOKENS * columns) and token < tokens
                        and (whole_columns or column < out_N)):
                    for half in T.unroll(2 if gated else 1):
                        n = T.meta_var(bx * (NT * 16) + row + half * 8)
                        total[half] = T.float32(0)
                        for warp in T.unroll(KS):
                            total[half] = total[half] + partial[warp, index // columns, row + half * 8]
                        total[half] = row_value(
                            total[half], global_scale[(*expert, n)], bias[n] if problem.bias else None)
                    if problem.residual:
                        T.ptx[_LOAD_RESIDUAL[problem.out_dtype]](added[0], residual.ptr_to([token, column]))
                    out[first_row + token, column] = output(
                        problem, total[0], total[1] if gated else None,
                        T.reinterpret(problem.out_dtype, added[0]) if problem.residual else None)
    # fmt: on

    optional = {"bias": problem.bias, "residual": problem.residual, "indptr": grouped}
    names = [parameter.name for parameter in kernel.params]
    kept = [index for index, name in enumerate(names) if optional.get(name, True)]
    function = PrimFunc([kernel.params[i] for i in kept], kernel.body, attrs=kernel.attrs)
    if config.pdl:
        # TVM spells it so (src/runtime/metadata.h)
        function = function.with_attr("tirx.kernel_launch_params", ["tirx.use_programtic_dependent_launch"])
    return function, tuple(names[i] for i in kept)
