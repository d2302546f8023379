"""The GEMV kernel: up to 16 rows of activations, weights streamed from memory through registers.

out^T = W x^T on ``mma.m16n8k16``: a tile of 16 weight rows is the A operand, eight rows of activations (tokens)
are the n8 side of B. A block owns ``NT`` neighbouring tiles; its ``KS`` warps share K among them, and their sums
meet in shared memory at the end. A lane's weights are 16-byte loads that are decoded in registers; its activations
are 16-byte loads that are mma operands as they are (see :mod:`nvfp4_tvm.layout`).

Memory that must not be read is not: activations beyond row M are clamped to row M - 1, whose sums are dropped, and
those beyond K are zeros that were never loaded. A weight tile beyond the last one is clamped likewise.

Programmatic dependent launch (PTX ISA, ``griddepcontrol``): a kernel may begin while its predecessor runs. Weights
are constants and are loaded before the wait; everything another kernel may have written is touched after it. The
trigger that lets the successor begin comes after the wait: whatever ran before the predecessor is then complete
when the successor begins, so only weights written by the kernel directly before could be read too early.
"""

# mypy: disable-error-code="valid-type"
# TVMScript's annotations are values

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from nvfp4_tvm import layout
from nvfp4_tvm.arch import MAX_THREADS_PER_BLOCK, STATIC_SHARED_BYTES, WARP_SIZE
from nvfp4_tvm.schedules.base import MatmulProblem
from nvfp4_tvm.schedules.epilogue import output, row_value
from nvfp4_tvm.schedules.intrin.fp4_decode import cuda_decoder, decode_name, scales_name

#: Rows of activations of one mma: the n of m16n8k16.
TOKENS = 8

# Weights are read once: they should neither evict activations from the L1 cache nor wait for whole lines there;
# the L2 may fetch 128 bytes, since all of them will be used.
_LOAD_WEIGHTS = "ld.global.nc.L1::no_allocate.L2::128B"
# Coherent: with programmatic dependent launch the predecessor writes x and the residual while this kernel runs.
_LOAD_X = "ld.global.v4.u32"
_LOAD_RESIDUAL = {"float32": "ld.global.u32", "bfloat16": "ld.global.u16", "float16": "ld.global.u16"}
_MMA = "mma.sync.aligned.m16n8k16.row.col.f32.{0}.{0}.f32"
_PTX_TYPE = {"bfloat16": "bf16", "float16": "f16"}


@dataclass(frozen=True)
class GemvConfig:
    """Shape of a GEMV kernel.

    Attributes
    ----------
    KS : int
        Warps of a block, among which K is split.
    NT : int
        Tiles of 16 weight rows a block owns; every warp works on all of them, so that a fragment of activations,
        once loaded, serves them all.
    P : int
        Pieces of weights (one tile, one 128-block) a warp holds in registers: the one in use and P - 1 on their
        way. A multiple or a divisor of NT, so that a piece's registers are known at compile time.
    contiguous : bool
        Whether a warp's 128-blocks are neighbours in memory, or every KS-th one is its.
    pdl : bool
        Whether the kernel takes part in programmatic dependent launch.
    early : bool
        Whether the successor may begin before the main loop rather than after it.
    resident : int
        Blocks that must fit on an SM at the same time: the compiler limits registers accordingly.
    window : int
        Fragments of activations a warp holds, of the four of a 128-block: 4, or 1 or 2 where registers are short,
        which loads them once for every tile instead of once for all.
    """

    KS: int
    NT: int = 1
    P: int = 3
    contiguous: bool = True
    pdl: bool = False
    early: bool = False
    resident: int = 1
    window: int = 4

    def __post_init__(self) -> None:
        assert 1 <= self.KS and self.threads <= MAX_THREADS_PER_BLOCK, self
        assert self.NT >= 1 and self.P >= 1 and self.resident >= 1, self
        assert self.window in (1, 2, 4), self
        assert self.NT % self.P == 0 or self.P % self.NT == 0, self
        assert self.shared_bytes <= STATIC_SHARED_BYTES, self

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.KS * WARP_SIZE

    @property
    def rows(self) -> int:
        """Weight rows of a block."""
        return self.NT * layout.TILE_N

    @property
    def turn(self) -> int:
        """128-blocks after which a piece's registers come around again."""
        return max(1, self.P // self.NT)

    @property
    def group(self) -> int:
        """Tiles whose partial sums are in shared memory at a time: as many as fit, dividing NT."""
        return next(
            tiles
            for tiles in range(self.NT, 0, -1)
            if self.NT % tiles == 0 and (tiles == 1 or self._shared_bytes(tiles) <= STATIC_SHARED_BYTES)
        )

    @property
    def shared_stride(self) -> int:
        """Elements between two tokens of a warp's partial sums.

        4 more than a multiple of 16: the lanes of a warp store (token 2q, row g) at 8q + g mod 32, all banks.
        """
        return self.group * layout.TILE_N + 4

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block: the partial sums of eight tokens."""
        return self._shared_bytes(self.group)

    def _shared_bytes(self, tiles: int) -> int:
        return self.KS * TOKENS * (tiles * layout.TILE_N + 4) * 4

    def blocks(self, N: int) -> int:
        """Blocks of the grid for N weight rows."""
        return -(-N // self.rows)

    def steps(self, K: int) -> int:
        """128-blocks of K that a warp works through, at most."""
        return -(-layout.tiles(1, K)[1] // self.KS)

    def __str__(self) -> str:
        order = "c" if self.contiguous else "i"
        launch = ("_early" if self.early else "_late") if self.pdl else ""
        return f"ks{self.KS}_nt{self.NT}_p{self.P}{order}_r{self.resident}_w{self.window}{launch}"


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
    KS, NT, P, NTHREADS, group, window = (
        config.KS,
        config.NT,
        config.P,
        config.threads,
        config.group,
        config.window,
    )
    steps, unrolled, stride = config.steps(K), config.turn, config.shared_stride
    whole_k = steps_k % KS == 0
    whole_turns = steps % unrolled == 0
    whole_tiles = tiles % NT == 0
    whole_x = K % layout.TILE_K == 0
    gated = problem.activation is not None
    # Output columns of a tile, and of a group of tiles
    tile_columns = layout.TILE_N // 2 if gated else layout.TILE_N
    columns = tile_columns * group
    whole_columns = out_N % (tile_columns * NT) == 0
    load_words, load_scales = _LOAD_WEIGHTS + ".v4.u32", _LOAD_WEIGHTS + ".u32"
    mma = _MMA.format(_PTX_TYPE[dtype])
    decoder, decode, decode_scales = cuda_decoder(dtype), decode_name(dtype), scales_name(dtype)
    raw = "uint32" if problem.out_dtype == "float32" else "uint16"
    rounds = -(-TOKENS * columns // NTHREADS)
    whole_rounds = TOKENS * columns % NTHREADS == 0
    M = tirx.Var("M", "int64")

    # fmt: off
    @T.prim_func
    def kernel(
        x: T.Buffer((M, K), dtype),
        words: T.Buffer(layout.words_shape(N, K), "uint32"),
        scales: T.Buffer(layout.scales_shape(N, K), "uint32"),
        global_scale: T.Buffer(layout.global_scale_shape(N), "float32"),
        bias: T.Buffer((N,), dtype),
        residual: T.Buffer((M, out_N), problem.out_dtype),
        out: T.Buffer((M, out_N), problem.out_dtype),
    ):
        T.device_entry()
        T.attr(0, "tirx.launch_bounds_min_blocks_per_sm", config.resident)
        bx = T.cta_id([config.blocks(N)])
        tx = T.thread_id([NTHREADS])
        ks: T.let = tx // 32
        lane: T.let = tx % 32
        g: T.let = lane // 4
        q: T.let = lane % 4
        tokens: T.let = T.cast(M, "int32")
        # The warp's 128-blocks: the first, and how many
        first: T.let = ks * steps_k // KS if config.contiguous else ks
        count: T.let = (ks + 1) * steps_k // KS - first if config.contiguous else (steps_k - ks + KS - 1) // KS
        partial = T.alloc_shared((KS, TOKENS, stride), "float32")
        w = T.alloc_local((P, 2, 4), "uint32")         # [slot, h, i]
        s = T.alloc_local((P,), "uint32")
        xf = T.alloc_local((window, NB, 4), "uint32")  # [slot, eight, register]
        acc = T.alloc_local((NT, NB, 4), "float32")
        sf = T.alloc_local((2, 2), "uint32")           # [group, h]
        wf = T.alloc_local((2, 4), "uint32")           # [h, pair]
        total = T.alloc_local((2,), "float32")
        added = T.alloc_local((1,), raw)

        @T.inline
        def load(slot, step, t):
            if whole_k or step < count:
                c = T.meta_var(first + step if config.contiguous else first + step * KS)
                tile = T.meta_var(bx * NT + t if whole_tiles else T.min(bx * NT + t, tiles - 1))
                for h in T.unroll(2):
                    T.ptx[load_words](*[w[slot, h, i] for i in range(4)], words.ptr_to([tile, c, h, lane, 0]))
                T.ptx[load_scales](s[slot], scales.ptr_to([tile, c, lane]))

        @T.inline
        def load_x(step, i):
            for b in T.unroll(NB):
                c = T.meta_var(first + step if config.contiguous else first + step * KS)
                row = T.meta_var(T.min(b * TOKENS + g, tokens - 1))
                k = T.meta_var(c * 128 + q * 32 + i * 8)
                if whole_x:
                    T.ptx[_LOAD_X](*[xf[i % window, b, j] for j in range(4)], x.ptr_to([row, k]))
                else:
                    for j in T.unroll(4):
                        xf[i % window, b, j] = T.uint32(0)
                    if k < K:
                        T.ptx[_LOAD_X](*[xf[i % window, b, j] for j in range(4)], x.ptr_to([row, k]))

        @T.inline
        def compute(slot, step, t):
            T.evaluate(T.cuda.func_call(
                decode_scales, sf[0, 0], sf[0, 1], sf[1, 0], sf[1, 1], s[slot], source_code=decoder))
            for i in T.unroll(4):
                for h in T.unroll(2):
                    T.evaluate(T.cuda.func_call(
                        decode, wf[h, 0], wf[h, 1], wf[h, 2], wf[h, 3], w[slot, h, i], sf[i // 2, h],
                        source_code=decoder))
                for j in T.unroll(2):
                    for b in T.unroll(NB):
                        T.ptx[mma](*[acc[t, b, z] for z in range(4)],
                                   wf[0, 2 * j], wf[1, 2 * j], wf[0, 2 * j + 1], wf[1, 2 * j + 1],
                                   xf[i % window, b, 2 * j], xf[i % window, b, 2 * j + 1],
                                   *[acc[t, b, z] for z in range(4)])
                # In the place of those just used, so that they arrive behind the decoding of the next words
                if i + window < 4:
                    load_x(step, i + window)
                elif t < NT - 1:
                    if window < 4:
                        load_x(step, i + window - 4)
                elif step + 1 < (steps if whole_k else count):
                    load_x(step + 1, i + window - 4)

        for t in T.unroll(NT):
            for b in T.unroll(NB):
                for z in T.unroll(4):
                    acc[t, b, z] = T.float32(0)
        for p in T.unroll(P - 1):
            load(p, p // NT, p % NT)
        if config.pdl:
            T.ptx.griddepcontrol.wait()
            if config.early:
                T.ptx.griddepcontrol.launch_dependents()
        if whole_k or 0 < count:
            for i in T.unroll(window):
                load_x(0, i)
        for turn in T.serial(-(-steps // unrolled)):
            for r in T.unroll(unrolled):
                step = T.meta_var(turn * unrolled + r)
                for t in T.unroll(NT):
                    ahead = T.meta_var(r * NT + t + P - 1)
                    if turn * unrolled + ahead // NT < steps:
                        load(ahead % P, turn * unrolled + ahead // NT, ahead % NT)
                    if (whole_k and whole_turns) or step < (steps if whole_k else count):
                        compute((r * NT + t) % P, step, t)
        if config.pdl and not config.early:
            T.ptx.griddepcontrol.launch_dependents()
        for b in T.unroll(NB):
            for part in T.unroll(NT // group):
                if b + part > 0:
                    T.cuda.cta_sync()
                for t in T.unroll(group):
                    for z in T.unroll(4):
                        partial[ks, q * 2 + z % 2, t * 16 + z // 2 * 8 + g] = acc[part * group + t, b, z]
                T.cuda.cta_sync()
                for turn in T.unroll(rounds):
                    index: T.let = turn * NTHREADS + tx
                    token: T.let = b * TOKENS + index // columns
                    column: T.let = (bx * (NT // group) + part) * columns + index % columns
                    # Row in the group, of the gate where there is one
                    row: T.let = index % columns // tile_columns * 16 + index % tile_columns
                    if ((whole_rounds or index < TOKENS * columns) and token < tokens
                            and (whole_columns or column < out_N)):
                        for half in T.unroll(2 if gated else 1):
                            n = T.meta_var((bx * NT + part * group) * 16 + row + half * 8)
                            total[half] = T.float32(0)
                            for warp in T.unroll(KS):
                                total[half] = total[half] + partial[warp, index // columns, row + half * 8]
                            total[half] = row_value(
                                total[half], global_scale[n], bias[n] if problem.bias else None)
                        if problem.residual:
                            T.ptx[_LOAD_RESIDUAL[problem.out_dtype]](added[0], residual.ptr_to([token, column]))
                        out[token, column] = output(
                            problem, total[0], total[1] if gated else None,
                            T.reinterpret(problem.out_dtype, added[0]) if problem.residual else None)
    # fmt: on

    optional = {"bias": problem.bias, "residual": problem.residual}
    names = [parameter.name for parameter in kernel.params]
    kept = [index for index, name in enumerate(names) if optional.get(name, True)]
    function = PrimFunc([kernel.params[i] for i in kept], kernel.body, attrs=kernel.attrs)
    if config.pdl:
        # TVM spells it so (src/runtime/metadata.h)
        function = function.with_attr("tirx.kernel_launch_params", ["tirx.use_programtic_dependent_launch"])
    return function, tuple(names[i] for i in kept)
