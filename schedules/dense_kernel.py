"""The kernel of plain linear layers on CUDA: what a checkpoint leaves unquantized, such as the head.

out^T = W x^T on ``mma.m16n8k16``, as in :mod:`.gemv_kernel`: a tile of 16 weight rows is the A operand, eight rows
of activations (tokens) are the n8 side of B. The sum over k has no order of its own, so k is dealt to the lanes of
a fragment as memory has it: of 32 neighbouring k, lane q of four takes the 8 from 8q on, one 16-byte load, and the
pairs of both operands meet. Nothing is staged: weights go from memory to registers, activations come out of the
L1 and L2 caches.

A block owns ``NT`` neighbouring tiles and ``8 NB`` tokens; its ``KS`` warps share K among them, and their sums meet
in shared memory at the end. Blocks of the same tiles are neighbours in the grid, so that weights that are read for
many tokens come from the L2 cache.

Memory that must not be read is not: tokens beyond row M are clamped to row M - 1 and weight rows beyond N to row
N - 1, whose sums are dropped; what lies beyond K is zeros that were never loaded.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from nvfp4_tvm.arch import MAX_THREADS_PER_BLOCK, STATIC_SHARED_BYTES
from nvfp4_tvm.schedules.dense_problem import DenseProblem
from nvfp4_tvm.schedules.intrin.mma_sync import LOAD_WEIGHTS, LOAD_X, TOKENS, mma_name
from nvfp4_tvm.schedules.split_warps import SplitWarps

#: Elements of a 16-byte load, and k of a step: two loads of a lane, of which four make 64 bytes of a row each, whole
#: sectors of the L2.
ELEMENTS = 8
LOADS = 2
STEP_K = LOADS * 4 * ELEMENTS


@dataclass(frozen=True)
class DenseConfig(SplitWarps):
    """Shape of a dense kernel; its warps take runs of steps of `STEP_K`.

    Attributes
    ----------
    NB : int
        Eights of tokens of a block.
    D : int
        Steps of weights that a warp has in registers or on their way there.
    """

    NB: int
    D: int

    def __post_init__(self) -> None:
        assert min(self.KS, self.NT, self.NB, self.D) >= 1, self
        assert self.threads <= MAX_THREADS_PER_BLOCK and self.shared_bytes <= STATIC_SHARED_BYTES, self

    @property
    def tokens(self) -> int:
        """Rows of activations of a block."""
        return self.NB * TOKENS

    def __str__(self) -> str:
        return f"ks{self.KS}_nt{self.NT}_nb{self.NB}_d{self.D}"


def dense_prim_func(problem: DenseProblem, config: DenseConfig) -> PrimFunc:
    """Return ``f(x[M, K], weight[N, K], out[M, N])`` for any M, and any N where the problem has none.

    Parameters
    ----------
    problem : DenseProblem
        Of bfloat16 or float16 operands, with K a multiple of `ELEMENTS`.
    config : DenseConfig
    """
    rows_known, K, dtype = problem.N, problem.K, problem.dtype
    KS, NT, NB, D, NTHREADS = config.KS, config.NT, config.NB, config.D, config.threads
    rows, tokens = config.rows, config.tokens
    steps_k = -(-K // STEP_K)
    steps = -(-steps_k // KS)
    turns = -(-steps // D)
    whole_k = K % STEP_K == 0
    whole_steps = steps_k % KS == 0
    whole_turns = steps % D == 0
    whole_n = rows_known is not None and rows_known % rows == 0
    index_dtype = problem.index_dtype
    extent = tirx.const(rows_known or 0, index_dtype)
    load_weight, load_x = LOAD_WEIGHTS + ".v4.u32", LOAD_X
    mma = mma_name(dtype)
    rounds = -(-TOKENS * rows // NTHREADS)
    whole_rounds = TOKENS * rows % NTHREADS == 0

    # fmt: off
    @T.prim_func
    def kernel(x_ptr: T.handle, weight_ptr: T.handle, out_ptr: T.handle) -> None:
        M = T.int64()
        N_any = T.int64()
        N = T.meta_var(N_any if rows_known is None else extent)
        x = T.match_buffer(x_ptr, (M, K), dtype)
        weight = T.match_buffer(weight_ptr, (N, K), dtype)
        out = T.match_buffer(out_ptr, (M, N), problem.out_dtype)
        T.device_entry()
        bx = T.cta_id([T.cast((M + (tokens - 1)) // tokens * ((N + (rows - 1)) // rows), "int32")])
        tx = T.thread_id([NTHREADS])
        count: T.int32 = T.cast(M, "int32")
        count_n: T.int32 = T.cast(N, "int32")
        token_tiles: T.int32 = (count + (tokens - 1)) // tokens
        tile: T.int32 = bx // token_tiles
        first_n: T.int32 = tile * rows
        first_m: T.int32 = (bx - tile * token_tiles) * tokens
        ks: T.let = tx // 32
        g: T.let = tx % 32 // 4
        q: T.let = tx % 4
        # The warp's run of steps: its first, and how many
        first: T.let = ks * steps_k // KS
        own: T.let = (ks + 1) * steps_k // KS - first
        partial = T.alloc_shared((KS, TOKENS, config.shared_stride), "float32")
        w = T.alloc_local((D, NT, LOADS, 2, 4), "uint32")   # [slot, tile, load, h, register]
        xf = T.alloc_local((NB, 4), "uint32")               # [eight, register]
        acc = T.alloc_local((NT, NB, 4), "float32")
        total = T.alloc_local((1,), "float32")

        @T.inline
        def load(slot, step):
            if whole_steps or step < own:
                for t in T.unroll(NT):
                    for i in T.unroll(LOADS):
                        k = T.meta_var((first + step) * STEP_K + i * 32 + q * 8)
                        for h in T.unroll(2):
                            n = T.meta_var(first_n + t * 16 + h * 8 + g)
                            row = T.meta_var(T.cast(n if whole_n else T.min(n, count_n - 1), index_dtype))
                            if whole_k:
                                T.ptx[load_weight](*[w[slot, t, i, h, j] for j in range(4)], weight.ptr_to([row, k]))
                            else:
                                for j in T.unroll(4):
                                    w[slot, t, i, h, j] = T.uint32(0)
                                if k < K:
                                    T.ptx[load_weight](
                                        *[w[slot, t, i, h, j] for j in range(4)], weight.ptr_to([row, k]))

        @T.inline
        def compute(slot, step):
            for i in T.unroll(LOADS):
                k = T.meta_var((first + step) * STEP_K + i * 32 + q * 8)
                for b in T.unroll(NB):
                    row = T.meta_var(T.cast(T.min(first_m + b * TOKENS + g, count - 1), "int64"))
                    if whole_k:
                        T.ptx[load_x](*[xf[b, j] for j in range(4)], x.ptr_to([row, k]))
                    else:
                        for j in T.unroll(4):
                            xf[b, j] = T.uint32(0)
                        if k < K:
                            T.ptx[load_x](*[xf[b, j] for j in range(4)], x.ptr_to([row, k]))
                for t in T.unroll(NT):
                    for j in T.unroll(2):
                        for b in T.unroll(NB):
                            T.ptx[mma](*[acc[t, b, z] for z in range(4)],
                                       w[slot, t, i, 0, 2 * j], w[slot, t, i, 1, 2 * j],
                                       w[slot, t, i, 0, 2 * j + 1], w[slot, t, i, 1, 2 * j + 1],
                                       xf[b, 2 * j], xf[b, 2 * j + 1], *[acc[t, b, z] for z in range(4)])

        for t in T.unroll(NT):
            for b in T.unroll(NB):
                for z in T.unroll(4):
                    acc[t, b, z] = T.float32(0)
        for slot in T.unroll(D):
            load(slot, slot)
        for turn in T.serial(turns):
            for r in T.unroll(D):
                step = T.meta_var(turn * D + r)
                if (whole_steps and whole_turns) or step < (steps if whole_steps else own):
                    compute(r, step)
                if step + D < steps:
                    load(r, step + D)
        for b in T.unroll(NB):
            if b > 0:
                T.cuda.cta_sync()
            for t in T.unroll(NT):
                for z in T.unroll(4):
                    partial[ks, q * 2 + z % 2, t * 16 + z // 2 * 8 + g] = acc[t, b, z]
            T.cuda.cta_sync()
            for turn in T.unroll(rounds):
                index: T.let = turn * NTHREADS + tx
                m: T.let = first_m + b * TOKENS + index // rows
                n: T.let = first_n + index % rows
                if (whole_rounds or index < TOKENS * rows) and m < count and (whole_n or n < count_n):
                    total[0] = T.float32(0)
                    for warp in T.unroll(KS):
                        total[0] = total[0] + partial[warp, index // rows, index % rows]
                    out[T.cast(m, "int64"), n] = T.cast(total[0], problem.out_dtype)
    # fmt: on
    return kernel
