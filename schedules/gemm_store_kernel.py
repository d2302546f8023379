"""What the wgmma kernels have in common: operands of the instruction, and the epilogue of a warp.

The epilogue takes a piece of 16 weight rows by 16 tokens. A thread holds rows g and g + 8 of tokens 2q and 2q + 1 of
both its halves, as wgmma leaves them (PTX ISA, "Register Fragments for wgmma.mma_async.m64nNk16", operand D; lane
4g + q). 16-bit outputs are transposed by stmatrix to 16-byte stores; others, and rows of ``out`` that are not 16-byte
aligned, are stored one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T

from nvfp4_tvm import layout
from nvfp4_tvm.schedules.base import MatmulProblem
from nvfp4_tvm.schedules.epilogue import row_value, silu
from nvfp4_tvm.schedules.intrin.mma_sync import PTX_TYPE

#: Tokens of a piece, and of one of its halves.
PIECE_TOKENS, HALF_TOKENS = 16, 8
#: Elements of the buffer that transposes a piece: 16 tokens of 16 rows; 24 keep stmatrix free of conflicts.
STAGING_SHAPE = (PIECE_TOKENS, 24)
#: ``nvfp4_keep(float&)`` keeps reads of an accumulator behind the wait for wgmma, which the compiler does not know
#: to write it.
KEEP = 'static __device__ __forceinline__ void nvfp4_keep(float& r) { asm volatile("" : "+f"(r) :: "memory"); }\n'
#: Matrix descriptor (PTX ISA, "Matrix Descriptor"): 128-byte swizzle is 1 in bits 63..62; eight rows of 128 bytes are
#: 1024 bytes apart, in 16 bytes, in bits 45..32. The leading offset is not used by swizzled K-major layouts.
DESCRIPTOR_HIGH = (1 << 62) | (1024 // 16) << 32
#: Instruction that rounds two sums to a pair of 16-bit outputs.
_PACK = {"bfloat16": "cvt.rn.bf16x2.f32", "float16": "cvt.rn.f16x2.f32"}

#: A ``T.inline`` function.
Inline = Callable[..., Any]


def wgmma(tokens: int, dtype: str) -> str:
    """Name of the instruction for ``tokens`` activation rows."""
    return f"wgmma.mma_async.sync.aligned.m64n{tokens}k16.f32.{PTX_TYPE[dtype]}.{PTX_TYPE[dtype]}"


def packs_output(problem: MatmulProblem) -> bool:
    """Whether rows of ``out`` are written 16 bytes at a time; others are stored one by one."""
    return problem.out_dtype in _PACK and problem.out_N % 8 == 0


def output_columns(problem: MatmulProblem) -> int:
    """Columns of ``out`` that a 16-row tile of the weight makes."""
    return 8 if problem.activation == "silu_mul" else 16


def row_epilogue(problem: MatmulProblem) -> tuple[Inline, Inline]:
    """Return what loads the scales and biases of a thread's two rows, and what makes the outputs of a piece.

    ``load_rows(n_tile, lane, global_scale, bias, row_scale, row_bias)``: those of rows g and g + 8 of the tile of 16
    rows ``n_tile``, which may lie beyond N, into local arrays of two.

    ``finish(acc, first, row_scale, row_bias, residual, out, token, column, rows, packed)``: ``acc[first .. first + 7]``
    are the thread's sums, ``token`` its first token, perhaps beyond the ``rows`` of ``out``, ``column`` its first
    column. Where `packs_output`, ``packed[half * groups + h]`` gets two tokens of column ``column + 8 * h``, groups of
    eight columns being one if gated, else two; other outputs are stored.
    """
    gated, has_bias, has_residual = problem.activation == "silu_mul", problem.bias, problem.residual
    N, out_N, out_dtype = problem.N, problem.out_N, problem.out_dtype
    n_tiles = layout.tiles(N, 1)[0]
    halves = output_columns(problem) // 8
    packs = packs_output(problem)

    # fmt: off
    @T.inline
    def load_rows(n_tile, lane, global_scale, bias, row_scale, row_bias):
        row: T.int32 = T.min(n_tile, n_tiles - 1) * layout.TILE_N + lane // 4
        for h in T.unroll(2):
            row_scale[h] = global_scale[row + h * 8]
            if has_bias:
                row_bias[h] = bias[T.min(row + h * 8, N - 1)]

    @T.inline
    def finish(acc, first, row_scale, row_bias, residual, out, token, column, rows, packed):
        value = T.alloc_local((2, 2, 2), "float32")  # [8-token half][row half][token]
        # Nor may all residuals be read ahead: registers
        T.evaluate(T.cuda.func_call("nvfp4_keep", acc[first], source_code=KEEP))
        for c in T.unroll(2):
            for t in T.unroll(2):
                z = T.meta_var(first + c * 4 + t)
                line: T.int32 = token + (c * HALF_TOKENS + t)
                if gated:
                    value[c, 0, t] = silu(row_value(acc[z], row_scale[0], row_bias[0] if has_bias else None)) * row_value(
                        acc[z + 2], row_scale[1], row_bias[1] if has_bias else None)
                else:
                    for h in T.unroll(2):
                        value[c, h, t] = row_value(acc[z + h * 2], row_scale[h], row_bias[h] if has_bias else None)
                for h in T.unroll(halves):
                    if has_residual:
                        value[c, h, t] = value[c, h, t] + T.cast(residual[T.cast(T.min(line, rows - 1), "int64"), T.min(column + h * 8, out_N - 1)], "float32")
                    if not packs:
                        if line < rows:
                            if column + h * 8 < out_N:
                                out[T.cast(line, "int64"), column + h * 8] = T.cast(value[c, h, t], out_dtype)
            if packs:
                for h in T.unroll(halves):
                    T.ptx[_PACK[out_dtype]](packed[c * halves + h], value[c, h, 1], value[c, h, 0])
    # fmt: on
    return load_rows, finish


def epilogue_scripts(problem: MatmulProblem) -> tuple[Inline, Inline]:
    """Return the scripts that read what the epilogue needs of a tile's rows, and that store a piece.

    Parameters
    ----------
    problem : MatmulProblem
        Its epilogue.

    Returns
    -------
    load_rows : callable
        That of `row_epilogue`.
    store : callable
        ``store(acc, first, n_tile, token, M, warp, lane, row_scale, row_bias, residual, out, staging)``:
        ``acc[first .. first + 7]`` are the thread's sums and ``token`` is the piece's first, perhaps beyond M;
        ``staging[warp]`` is the warp's, of `STAGING_SHAPE`.
    """
    out_N = problem.out_N
    gated = problem.activation == "silu_mul"
    columns, transposed = output_columns(problem), packs_output(problem)
    halves = columns // 8  # groups of eight output columns of a tile
    load_rows, finish = row_epilogue(problem)

    # fmt: off
    @T.inline
    def store(acc, first, n_tile, token, M, warp, lane, row_scale, row_bias, residual, out, staging):
        packed = T.alloc_local((4,), "uint32")
        column: T.int32 = n_tile * columns
        rows: T.int32 = T.cast(M, "int32")
        finish(acc, first, row_scale, row_bias, residual, out, token + lane % 4 * 2, column + lane // 4, rows, packed)
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
