"""What the wgmma kernels have in common: operands of the instruction, and the epilogue of a warp.

The epilogue takes a piece of 16 weight rows by 16 tokens. A thread holds rows g and g + 8 of tokens 2q and 2q + 1 of
both its halves, as wgmma leaves them (PTX ISA, "Register Fragments for wgmma.mma_async.m64nNk16"). 16-bit outputs are
transposed by stmatrix to 16-byte stores; others, and rows of ``out`` that are not 16-byte aligned, are stored one
by one.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm.script import tirx as T

from nvfp4_tvm import layout
from nvfp4_tvm.schedules.base import MatmulProblem
from nvfp4_tvm.schedules.epilogue import row_value, silu
from nvfp4_tvm.schedules.intrin.mma import PTX_TYPE

#: Tokens of a piece, and elements of the buffer that transposes it: 16 tokens of 16 rows; 24 keep stmatrix free of conflicts.
PIECE_TOKENS = 16
STAGING_SHAPE = (PIECE_TOKENS, 24)
#: Keeps reads of an accumulator behind the wait for wgmma, which the compiler does not know to write it.
KEEP = 'static __device__ __forceinline__ void nvfp4_keep(float& r) { asm volatile("" : "+f"(r) :: "memory"); }\n'
#: Matrix descriptor (PTX ISA, "Matrix Descriptor"): 128-byte swizzle is 1 in bits 63..62; eight rows of 128 bytes are
#: 1024 bytes apart, in 16 bytes, in bits 45..32. The leading offset is not used by swizzled K-major layouts.
DESCRIPTOR_HIGH = (1 << 62) | (1024 // 16) << 32
_PACK = {"bfloat16": "cvt.rn.bf16x2.f32", "float16": "cvt.rn.f16x2.f32"}


def wgmma(tokens: int, dtype: str) -> str:
    """Name of the instruction for ``tokens`` activation rows."""
    return f"wgmma.mma_async.sync.aligned.m64n{tokens}k16.f32.{PTX_TYPE[dtype]}.{PTX_TYPE[dtype]}"


def epilogue_scripts(problem: MatmulProblem) -> tuple[Callable[..., None], Callable[..., None]]:
    """Return the scripts that read what the epilogue needs of a tile's rows, and that store a piece.

    Parameters
    ----------
    problem : MatmulProblem
        Its epilogue.

    Returns
    -------
    load_rows : callable
        ``load_rows(n_tile, lane, global_scale, bias, row_scale, row_bias)``: for the tile of 16 rows ``n_tile``,
        which may lie beyond N, the global scales and biases of rows g and g + 8 into local arrays of two.
    store : callable
        ``store(acc, first, n_tile, token, M, warp, lane, row_scale, row_bias, residual, out, staging)``:
        ``acc[first .. first + 7]`` are the thread's sums and ``token`` is the piece's first, perhaps beyond M;
        ``staging[warp]`` is the warp's, of `STAGING_SHAPE`.
    """
    N, out_N, out_dtype = problem.N, problem.out_N, problem.out_dtype
    n_tiles = layout.tiles(N, 1)[0]
    gated = problem.activation == "silu_mul"
    has_bias, has_residual = problem.bias, problem.residual
    halves = 1 if gated else 2  # groups of eight output columns of a tile
    transposed = out_dtype in _PACK and out_N % 8 == 0

    # fmt: off
    @T.inline
    def load_rows(n_tile, lane, global_scale, bias, row_scale, row_bias):
        row: T.int32 = T.min(n_tile, n_tiles - 1) * layout.TILE_N + lane // 4
        for h in T.unroll(2):
            row_scale[h] = global_scale[row + h * 8]
            if has_bias:
                row_bias[h] = bias[T.min(row + h * 8, N - 1)]

    @T.inline
    def store(acc, first, n_tile, token, M, warp, lane, row_scale, row_bias, residual, out, staging):
        value = T.alloc_local((2, 2, 2), "float32")  # [8-token half][row half][token]
        packed = T.alloc_local((4,), "uint32")
        column: T.int32 = n_tile * (8 * halves)
        own_column: T.int32 = column + lane // 4
        own_token: T.int32 = token + lane % 4 * 2
        rows: T.int32 = T.cast(M, "int32")
        for c in T.unroll(2):
            for t in T.unroll(2):
                z = T.meta_var(first + c * 4 + t)
                this: T.int32 = own_token + (c * 8 + t)
                if gated:
                    value[c, 0, t] = silu(row_value(acc[z], row_scale[0], row_bias[0] if has_bias else None)) * row_value(
                        acc[z + 2], row_scale[1], row_bias[1] if has_bias else None)
                else:
                    for h in T.unroll(2):
                        value[c, h, t] = row_value(acc[z + h * 2], row_scale[h], row_bias[h] if has_bias else None)
                for h in T.unroll(halves):
                    if has_residual:
                        value[c, h, t] = value[c, h, t] + T.cast(residual[T.cast(T.min(this, rows - 1), "int64"), T.min(own_column + h * 8, out_N - 1)], "float32")
                    if not transposed:
                        if this < rows:
                            if own_column + h * 8 < out_N:
                                out[T.cast(this, "int64"), own_column + h * 8] = T.cast(value[c, h, t], out_dtype)
            if transposed:
                for h in T.unroll(halves):
                    T.ptx[_PACK[out_dtype]](packed[c * halves + h], value[c, h, 1], value[c, h, 0])
        if transposed:
            if gated:
                T.ptx["stmatrix.sync.aligned.m8n8.x2.trans.shared.b16"](staging.ptr_to([warp, lane % 16, 0]), packed[0], packed[1])
            else:
                T.ptx["stmatrix.sync.aligned.m8n8.x4.trans.shared.b16"](
                    staging.ptr_to([warp, lane // 16 * 8 + lane % 8, lane // 8 % 2 * 8]), packed[0], packed[1], packed[2], packed[3])
            T.cuda.warp_sync()
            line: T.int32 = token + lane % 16
            if line < rows:
                if lane // 16 < halves:
                    if column + lane // 16 * 8 < out_N:
                        T.ptx["ld.shared.v4.u32"](packed[0], packed[1], packed[2], packed[3], staging.ptr_to([warp, lane % 16, lane // 16 * 8]))
                        T.ptx["st.global.v4.u32"](out.ptr_to([T.cast(line, "int64"), column + lane // 16 * 8]), packed[0], packed[1], packed[2], packed[3])
            T.cuda.warp_sync()
    # fmt: on
    return load_rows, store
