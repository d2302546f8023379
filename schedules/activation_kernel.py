"""The launch that brings activations into wgmma's order, see :mod:`nvfp4_tvm.schedules.activation_layout`."""

from __future__ import annotations

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from nvfp4_tvm import layout
from nvfp4_tvm.schedules.activation_layout import BOX_WORDS, BOXES, PDL, PIECE_WORDS, PIECES

THREADS = 128
#: Tokens whose 128-block a block of threads moves.
LINES = THREADS // PIECES


def tile_activations_kernel(K: int, dtype: str, tokens: int, flags: tuple[int, int] | None) -> PrimFunc:
    """The launch ``f(x[M, K], x_tiles[, flags])``: a thread moves the four pieces i of a token's 128-block.

    Parameters
    ----------
    K : int
        Columns of x, a multiple of 16.
    dtype : str
        bfloat16 or float16.
    tokens : int
        Rows of a tile.
    flags : (int, int) or None
        Shape of the uint32 flags to set to zero for the launch that follows, if it has any.
    """
    blocks = layout.tiles(1, K)[1]
    load = "ld.global.nc.v4.u32"
    store = "st.global.v4.u32"
    whole = K % layout.TILE_K == 0
    flags_shape = flags or (1, 1)
    flag_count = flags_shape[0] * flags_shape[1]

    # fmt: off
    @T.prim_func
    def tile_x(x_ptr: T.handle, tiles_ptr: T.handle, flags_buf: T.Buffer(flags_shape, "uint32")):
        M = T.int64()
        x = T.match_buffer(x_ptr, (M, K), dtype, align=16)
        tiles = T.match_buffer(tiles_ptr, ((M + (tokens - 1)) // tokens, blocks, BOXES, tokens, BOX_WORDS), "uint32", align=16)
        T.device_entry()
        bx = T.cta_id([T.cast((M + (tokens - 1)) // tokens * tokens + (LINES - 1), "int32") // LINES * blocks])
        tx = T.thread_id([THREADS])
        piece = T.alloc_local((PIECES, PIECE_WORDS), "uint32")
        i: T.let = tx % PIECES
        rows: T.int32 = T.cast(M, "int32")
        group: T.int32 = bx // blocks
        block: T.int32 = bx - group * blocks
        row: T.int32 = group * LINES + tx // PIECES
        tile: T.int32 = row // tokens
        token: T.int32 = row - tile * tokens
        own = T.alloc_local((PIECES,), "uint32")
        got = T.alloc_local((PIECES,), "uint32")
        send = T.alloc_local((PIECES,), "uint32")
        odd: T.let = i % 2 == 1
        T.ptx.griddepcontrol.launch_dependents()
        T.ptx.griddepcontrol.wait()
        if flags is not None:
            if bx == 0:
                for f in T.serial((flag_count + (THREADS - 1)) // THREADS):
                    if f * THREADS + tx < flag_count:
                        flags_buf[(f * THREADS + tx) // flags_shape[1], (f * THREADS + tx) % flags_shape[1]] = T.uint32(0)
        if tile * tokens < rows:
            for q in T.unroll(PIECES):
                for p in T.unroll(PIECE_WORDS):
                    piece[q, p] = T.uint32(0)
            if row < rows:
                for q in T.unroll(PIECES):
                    if whole or block * layout.TILE_K + q * 32 + i * 8 < K:
                        T.ptx[load](piece[q, 0], piece[q, 1], piece[q, 2], piece[q, 3], x.ptr_to([T.cast(row, "int64"), block * layout.TILE_K + q * 32 + i * 8]))
            for j in T.unroll(2):
                for q in T.unroll(PIECES):
                    own[q] = T.if_then_else(odd, piece[q, 2 * j + 1], piece[q, 2 * j])
                    got[q] = T.tvm_warp_shuffle_xor(T.uint32(0xFFFFFFFF), T.if_then_else(odd, piece[q, 2 * j], piece[q, 2 * j + 1]), 1, 32, 32)
                for t in T.unroll(2):
                    for q in T.unroll(PIECES):
                        send[q] = T.if_then_else(i % 2 == t, own[q], got[q])
                    T.ptx[store](tiles.ptr_to([T.cast(tile, "int64"), block, i // 2, token, ((t * 4 + 2 * j + i % 2) ^ (token % 8)) * PIECE_WORDS]),
                                 send[0], send[1], send[2], send[3])
    # fmt: on
    params = tile_x.params if flags is not None else tile_x.params[:2]
    return PrimFunc(params, tile_x.body, tile_x.ret_type, tile_x.attrs).with_attr(*PDL)
