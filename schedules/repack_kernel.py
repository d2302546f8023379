"""The repack on CUDA: a canonical weight into the packed layout, byte for byte what the CPU and NumPy make.

A thread moves 16 bytes of codes, the four words i of a lane, so that a warp reads whole 256-byte pieces of two rows
and writes whole 128-byte lines. The kernel is bound by memory: permuting the bits is a few dozen operations a word.
"""

from __future__ import annotations

from tvm.script import tirx as T
from tvm.target import Target
from tvm.tirx import Expr, PrimFunc

from nvfp4_tvm import layout
from nvfp4_tvm.schedules.kernel import Launch

THREADS = 256
#: 128-blocks along K that the threads of a block cover at a time: 16 rows of 4 pieces are 64 threads.
_COLUMNS = THREADS // (layout.TILE_N * layout.WORDS_PER_LANE)
#: Pieces a thread has in flight.
UNROLL = 4


def repack_kernel(N: int, K: int, rows: int, target: Target) -> Launch | None:
    """Return the launch ``f(codes, scales, global_scale, words, block_scales, row_scales)``, or None off CUDA.

    Parameters
    ----------
    N, K : int
        Shape of the weight.
    rows : int
        Global scales: 1, or N.
    target : Target

    Raises
    ------
    ShapeError
        If the shape is no NVFP4 weight's.
    """
    if target.kind.name != "cuda":
        return None
    layout.check_weight(N, K, "pack")
    arguments = ("codes", "scales", "global_scale", "words", "block_scales", "row_scales")
    return Launch(repack_prim_func(N, K, rows), arguments, "tirx")


def _step(word: Expr, step: int) -> Expr:
    return layout.move_bits(word, layout.PACK_STEPS[step], T.uint32)


def repack_prim_func(N: int, K: int, rows: int) -> PrimFunc:
    """Return the kernel of `repack_kernel`."""
    tiles, blocks = layout.tiles(N, K)
    width = _COLUMNS * UNROLL
    groups = -(-blocks // width)
    whole_words, whole_blocks = K % 32 == 0, K % layout.TILE_K == 0
    n_groups = K // layout.GROUP_SIZE
    load4, load2, store4 = "ld.global.nc.v4.u32", "ld.global.nc.v2.u32", "st.global.v4.u32"

    # fmt: off
    @T.prim_func
    def repack(
        codes_ptr: T.handle,
        scales_ptr: T.handle,
        global_scale: T.Buffer((rows,), "float32"),
        words: T.Buffer(layout.words_shape(N, K), "uint32"),
        block_scales: T.Buffer(layout.scales_shape(N, K), "uint32"),
        row_scales: T.Buffer(layout.global_scale_shape(N), "float32"),
    ):
        codes = T.match_buffer(codes_ptr, (N, K // 2), "uint8", align=16)
        scales = T.match_buffer(scales_ptr, (N, n_groups), "uint8", align=16)
        T.device_entry()
        bx = T.cta_id([tiles * groups])
        tx = T.thread_id([THREADS])
        t: T.let = bx // groups
        first: T.let = bx % groups * width
        w = T.alloc_local((UNROLL, 4), "uint32")
        a = T.alloc_local((2,), "uint32")
        b = T.alloc_local((2,), "uint32")
        out = T.alloc_local((4,), "uint32")
        r: T.let = tx // (4 * _COLUMNS)
        q: T.let = tx % 4
        row: T.let = T.cast(t * 16 + r, "int64")
        for u in T.unroll(UNROLL):
            c = T.meta_var(first + u * _COLUMNS + tx // 4 % _COLUMNS)
            k = T.meta_var(c * 128 + q * 32)
            for i in T.unroll(4):
                w[u, i] = T.uint32(0)
            if row < N:
                if whole_words:
                    if k < K:
                        T.ptx[load4](w[u, 0], w[u, 1], w[u, 2], w[u, 3], codes.ptr_to([row, c * 64 + q * 16]))
                else:
                    if k < K:
                        T.ptx[load2](w[u, 0], w[u, 1], codes.ptr_to([row, c * 64 + q * 16]))
                    if k + 16 < K:
                        T.ptx[load2](w[u, 2], w[u, 3], codes.ptr_to([row, c * 64 + q * 16 + 8]))
        for u in T.unroll(UNROLL):
            c = T.meta_var(first + u * _COLUMNS + tx // 4 % _COLUMNS)
            if c < blocks:
                for i in T.unroll(4):
                    w[u, i] = _step(w[u, i], 0)
                    w[u, i] = _step(w[u, i], 1)
                    w[u, i] = _step(w[u, i], 2)
                T.ptx[store4](words.ptr_to([t, c, r // 8, r % 8 * 4 + q, 0]), w[u, 0], w[u, 1], w[u, 2], w[u, 3])
        g: T.let = tx % 8
        sc: T.let = first + tx // 8
        if tx < 8 * width and sc < blocks:
            low: T.let = T.cast(t * 16 + g, "int64")
            for i in T.unroll(2):
                a[i] = T.uint32(0)
                b[i] = T.uint32(0)
            if whole_blocks:
                if low < N:
                    T.ptx[load2](a[0], a[1], scales.ptr_to([low, sc * 8]))
                if low + 8 < N:
                    T.ptx[load2](b[0], b[1], scales.ptr_to([low + 8, sc * 8]))
            else:
                for j in T.unroll(8):
                    if sc * 8 + j < n_groups:
                        if low < N:
                            a[j // 4] = a[j // 4] | T.cast(scales[low, sc * 8 + j], "uint32") << T.uint32(j % 4 * 8)
                        if low + 8 < N:
                            b[j // 4] = b[j // 4] | T.cast(scales[low + 8, sc * 8 + j], "uint32") << T.uint32(j % 4 * 8)
            for i in T.unroll(2):
                out[2 * i] = (a[i] & T.uint32(0xFFFF)) | b[i] << T.uint32(16)
                out[2 * i + 1] = a[i] >> T.uint32(16) | (b[i] & T.uint32(0xFFFF0000))
            T.ptx[store4](block_scales.ptr_to([t, sc, g * 4]), out[0], out[1], out[2], out[3])
        if first == 0 and tx < 16:
            row_scales[t * 16 + tx] = T.if_then_else(t * 16 + tx < N, global_scale[(t * 16 + tx) % rows], T.float32(0))
    # fmt: on
    return repack
