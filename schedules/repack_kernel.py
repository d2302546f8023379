"""The repack on CUDA: a canonical weight into the packed layout, byte for byte what the CPU and NumPy make.

A thread moves pieces of 16 bytes of codes, the four words i of a lane, so that a warp writes whole 128-byte lines
and reads whole sectors of rows. What it loads, block scales included, is in flight before it permutes the first
word: `Config` says how much. The permutation is :mod:`.intrin.fp4_encode`'s: by `layout.PACK_STEPS`, logic would
take nearly as long as memory.

The shape is symbolic: one kernel serves all weights whose K is a multiple of the same power of two.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm.script import tirx as T
from tvm.target import Target
from tvm.tirx import PrimFunc

from nvfp4_tvm import layout
from nvfp4_tvm.errors import ShapeError
from nvfp4_tvm.schedules.intrin.fp4_encode import PACK_NAME, cuda_pack
from nvfp4_tvm.schedules.kernel import Launch

#: Threads that move a 128-block of a tile's codes: 16 rows of 4 pieces.
_BLOCK_THREADS = layout.TILE_N * layout.TILE_K // (layout.CODES_PER_WORD * layout.WORDS_PER_LANE)
#: What K may be known to be a multiple of: rows of codes and scales are then aligned to 16 and 8 bytes, codes to
#: 16, or both to their own 8 and 1.
K_MULTIPLES = (128, 32, 16)


@dataclass(frozen=True)
class Config:
    """How the kernel divides a weight.

    Attributes
    ----------
    unroll : int
        Pieces that a thread has in flight.
    span : int
        128-blocks of a row that a warp reads side by side, 64 bytes each; 1, 2 or 4.
    threads : int
        Of a block, a multiple of 64 * ``span``.
    """

    unroll: int = 4
    span: int = 4
    threads: int = 256

    def __post_init__(self) -> None:
        if self.span not in (1, 2, 4) or self.threads % (_BLOCK_THREADS * self.span) or self.unroll < 1:
            raise ShapeError(
                f"repack: found {self}, expected a span of 1, 2 or 4 and a multiple of 64 threads for each"
            )

    @property
    def columns(self) -> int:
        """128-blocks along K that a block of threads moves at a time."""
        return self.threads // _BLOCK_THREADS

    @property
    def width(self) -> int:
        """128-blocks along K of a block of threads."""
        return self.columns * self.unroll


#: What `benchmarks/repack_gpu.py` compares.
CONFIGS = tuple(Config(unroll, span) for unroll in (2, 4, 8) for span in (1, 4))


def k_multiple(K: int) -> int:
    """Return the largest of `K_MULTIPLES` that divides K."""
    return next(multiple for multiple in K_MULTIPLES if K % multiple == 0)


def repack_kernel(multiple: int, target: Target, config: Config = Config()) -> Launch | None:
    """Return the launch ``f(codes, scales, global_scale, words, block_scales, row_scales)``, or None off CUDA.

    Parameters
    ----------
    multiple : int
        Of `K_MULTIPLES`; divides K.
    target : Target
    config : Config

    Raises
    ------
    ShapeError
        If `multiple` is none of `K_MULTIPLES`.
    """
    if target.kind.name != "cuda":
        return None
    if multiple not in K_MULTIPLES:
        raise ShapeError(f"repack: found multiples of {multiple}, expected one of {K_MULTIPLES}")
    arguments = ("codes", "scales", "global_scale", "words", "block_scales", "row_scales")
    return Launch(repack_prim_func(multiple, config), arguments, "tirx")


def repack_prim_func(multiple: int, config: Config) -> PrimFunc:
    """Return the kernel of `repack_kernel`."""
    unroll, span, columns, width, threads = (
        config.unroll,
        config.span,
        config.columns,
        config.width,
        config.threads,
    )
    whole_words, whole_blocks = multiple >= 32, multiple == layout.TILE_K
    load4, load2, store4 = "ld.global.nc.v4.u32", "ld.global.nc.v2.u32", "st.global.v4.u32"
    warp_rows = 8 // span
    sides = columns // span
    scale_steps = -(-8 * width // threads)
    source = cuda_pack()

    # fmt: off
    @T.prim_func
    def repack(
        codes_ptr: T.handle, scales_ptr: T.handle, global_scale_ptr: T.handle,
        words_ptr: T.handle, block_scales_ptr: T.handle, row_scales_ptr: T.handle,
    ):
        N = T.int64()
        row_groups = T.int64()
        rows = T.int64()
        codes = T.match_buffer(codes_ptr, (N, row_groups * 8), "uint8", align=16)
        scales = T.match_buffer(scales_ptr, (N, row_groups), "uint8", align=16)
        global_scale = T.match_buffer(global_scale_ptr, (rows,), "float32")
        words = T.match_buffer(words_ptr, ((N + 15) // 16, (row_groups + 7) // 8, 2, 32, 4), "uint32", align=16)
        block_scales = T.match_buffer(block_scales_ptr, ((N + 15) // 16, (row_groups + 7) // 8, 32), "uint32", align=16)
        row_scales = T.match_buffer(row_scales_ptr, ((N + 15) // 16 * 16,), "float32")
        T.device_entry()
        n_groups: T.int32 = T.cast(row_groups, "int32")
        blocks: T.int32 = (n_groups + 7) // 8
        parts: T.int32 = (blocks + (width - 1)) // width
        bx = T.cta_id([T.cast((N + 15) // 16 * (((row_groups + 7) // 8 + (width - 1)) // width), "int32")])
        tx = T.thread_id([threads])
        t: T.int32 = T.truncdiv(bx, parts)
        first: T.int32 = (bx - t * parts) * width
        flat_codes = T.decl_buffer((N * row_groups * 8,), "uint8", data=codes.data)
        flat_scales = T.decl_buffer((N * row_groups,), "uint8", data=scales.data)
        flat_words = T.decl_buffer(((N + 15) // 16 * ((row_groups + 7) // 8) * 256,), "uint32", data=words.data)
        w = T.alloc_local((unroll, 4), "uint32")
        a = T.alloc_local((scale_steps, 2), "uint32")
        b = T.alloc_local((scale_steps, 2), "uint32")
        out = T.alloc_local((4,), "uint32")
        warp: T.let = tx // 32
        q: T.let = tx % 4
        r: T.let = warp // sides * warp_rows + tx % 32 // (4 * span)
        own: T.int32 = first + warp % sides * span + tx // 4 % span
        tile: T.int64 = T.cast(t, "int64")
        left: T.int32 = T.cast(T.min(N - tile * 16, T.int64(16)), "int32")
        # Groups of its row from a thread's first piece on, and 128-blocks
        groups: T.int32 = T.if_then_else(r < left, n_groups - own * 8 - q * 2, 0)
        places: T.int32 = blocks - own
        source_at: T.int64 = ((tile * 16 + r) * row_groups + T.cast(own * 8 + q * 2, "int64")) * 8
        target_at: T.int64 = (tile * blocks + own) * 256 + (r * 16 + q * 4)
        for u in T.unroll(unroll):
            for i in T.unroll(4):
                w[u, i] = T.uint32(0)
            if whole_words:
                if u * columns * 8 < groups:
                    T.ptx[load4](w[u, 0], w[u, 1], w[u, 2], w[u, 3], flat_codes.ptr_to([source_at + u * columns * 64]))
            else:
                if u * columns * 8 < groups:
                    T.ptx[load2](w[u, 0], w[u, 1], flat_codes.ptr_to([source_at + u * columns * 64]))
                if u * columns * 8 + 1 < groups:
                    T.ptx[load2](w[u, 2], w[u, 3], flat_codes.ptr_to([source_at + (u * columns * 64 + 8)]))
        g: T.let = tx % 8
        low_at: T.int64 = (tile * 16 + g) * row_groups + (first + tx // 8) * 8
        high_at: T.int64 = low_at + row_groups * 8
        for s in T.unroll(scale_steps):
            sc = T.meta_var(first + (s * threads + tx) // 8)
            for i in T.unroll(2):
                a[s, i] = T.uint32(0)
                b[s, i] = T.uint32(0)
            if s * threads + tx < 8 * width and sc < blocks:
                if whole_blocks:
                    if g < left:
                        T.ptx[load2](a[s, 0], a[s, 1], flat_scales.ptr_to([low_at + s * threads]))
                    if g + 8 < left:
                        T.ptx[load2](b[s, 0], b[s, 1], flat_scales.ptr_to([high_at + s * threads]))
                else:
                    for j in T.unroll(8):
                        if sc * 8 + j < n_groups:
                            if g < left:
                                a[s, j // 4] = a[s, j // 4] | T.cast(flat_scales[low_at + (s * threads + j)], "uint32") << T.uint32(j % 4 * 8)
                            if g + 8 < left:
                                b[s, j // 4] = b[s, j // 4] | T.cast(flat_scales[high_at + (s * threads + j)], "uint32") << T.uint32(j % 4 * 8)
        for u in T.unroll(unroll):
            if u * columns < places:
                for i in T.unroll(4):
                    T.evaluate(T.cuda.func_call(PACK_NAME, w[u, i], source_code=source))
                T.ptx[store4](flat_words.ptr_to([target_at + u * columns * 256]), w[u, 0], w[u, 1], w[u, 2], w[u, 3])
        for s in T.unroll(scale_steps):
            sc = T.meta_var(first + (s * threads + tx) // 8)
            if s * threads + tx < 8 * width and sc < blocks:
                for i in T.unroll(2):
                    out[2 * i] = (a[s, i] & T.uint32(0xFFFF)) | b[s, i] << T.uint32(16)
                    out[2 * i + 1] = a[s, i] >> T.uint32(16) | (b[s, i] & T.uint32(0xFFFF0000))
                T.ptx[store4](block_scales.ptr_to([t, sc, g * 4]), out[0], out[1], out[2], out[3])
        if first == 0 and tx < 16:
            n: T.int64 = tile * 16 + tx
            row_scales[n] = T.if_then_else(tx < left, global_scale[T.if_then_else(rows == 1, T.int64(0), n)], T.float32(0))
    # fmt: on
    return repack
