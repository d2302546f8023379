"""How both wgmma GEMMs finish a tile: handing sums from block to block, and the epilogue of sixteen tokens.

A thread of a multiplying warp holds rows g and g + 8 of the warp's 16-row tile, of each 8-token chunk the tokens
2q and 2q + 1 (PTX ISA, "Register Fragments for wgmma.mma_async.m64nNk16", operand D; lane 4g + q).

Sums of a tile that several blocks share go through global memory: a block stores its accumulators and then, per
warp, a flag (release); the block that finishes the tile polls the flags (acquire) and adds them in order. The
launch before sets the flags to zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from nvfp4_tvm.schedules import stream_k
from nvfp4_tvm.schedules.activation_layout import PDL
from nvfp4_tvm.schedules.base import MatmulProblem
from nvfp4_tvm.schedules.epilogue import row_value, silu

#: Tokens of a chunk of accumulators, and of what the epilogue takes at a time.
CHUNK, PAIR = 8, 16
#: wgmma's name of an activation dtype.
PTX_TYPE = {"bfloat16": "bf16", "float16": "f16"}
#: Instruction that rounds two sums to a pair of 16-bit outputs.
PACK = {"bfloat16": "cvt.rn.bf16x2.f32", "float16": "cvt.rn.f16x2.f32"}
#: Matrix descriptor (PTX ISA, "Matrix Descriptor"): 128-byte swizzle is 1 in bits 63..62; eight rows of 128 bytes are
#: 1024 bytes apart, in 16 bytes, in bits 45..32. The leading offset is not used by swizzled K-major layouts.
DESCRIPTOR_HIGH = (1 << 62) | (1024 // 16) << 32
#: ``nvfp4_keep(float&)`` keeps reads of an accumulator behind the wait for wgmma, which the compiler does not know
#: to write it.
KEEP = 'static __device__ __forceinline__ void nvfp4_keep(float& r) { asm volatile("" : "+f"(r) :: "memory"); }\n'
#: Chunks that are read from memory before they are added: enough to hide the latency.
_BATCH = 8
_ZERO_THREADS = 1024

#: A ``T.inline`` function.
Inline = Callable[..., Any]


def select(condition: Any, a: Any, b: Any) -> Any:
    """`stream_k.Select` for expressions."""
    return T.if_then_else(condition, a, b)


def packs_output(problem: MatmulProblem) -> bool:
    """Whether rows of ``out`` are written 16 bytes at a time; others are stored one by one."""
    return problem.out_dtype in PACK and problem.out_N % 8 == 0


def output_columns(problem: MatmulProblem) -> int:
    """Columns of ``out`` that a 16-row tile of the weight makes."""
    return 8 if problem.activation == "silu_mul" else 16


# fmt: off
def hand_over(tokens: int) -> tuple[Inline, Inline]:
    """Return what gives a block's sums of a tile to a later block, and what takes those of earlier ones.

    ``give(acc, partials, flags, block, tx)`` and ``take(acc, partials, flags, block, first, units, sharing, tx)``
    with the tile's first block (:mod:`.stream_k`).
    """
    chunks = tokens // CHUNK

    @T.inline
    def give(acc, partials, flags, block, tx):
        for j in T.unroll(chunks):
            T.ptx["st.global.cg.v4.f32"](partials.ptr_to([block, j, tx, 0]), acc[j * 4], acc[j * 4 + 1], acc[j * 4 + 2], acc[j * 4 + 3])
        T.ptx.fence.acq_rel.gpu()
        T.cuda.warp_sync()
        if tx % 32 == 0:
            T.ptx["st.release.gpu.global.u32"](flags.ptr_to([block, tx // 32]), T.uint32(1))

    @T.inline
    def take(acc, partials, flags, block, first, units, sharing, tx):
        flag = T.alloc_local((1,), "uint32")
        other = T.alloc_local((_BATCH, 4), "float32")
        for o in T.serial((block - first + 31) // 32):
            polled: T.int32 = first + o * 32 + tx % 32
            if polled < block:
                if stream_k.first_unit(polled + 1, units, sharing, select) > stream_k.first_unit(polled, units, sharing, select):
                    flag[0] = T.uint32(0)
                    while flag[0] == T.uint32(0):
                        T.ptx["ld.acquire.gpu.global.u32"](flag[0], flags.ptr_to([polled, tx // 32]))
            T.cuda.warp_sync()
        for o in T.serial(block - first):
            added: T.int32 = first + o
            if stream_k.first_unit(added + 1, units, sharing, select) > stream_k.first_unit(added, units, sharing, select):
                for batch in T.unroll((chunks + (_BATCH - 1)) // _BATCH):
                    for j in T.unroll(_BATCH):
                        if batch * _BATCH + j < chunks:
                            T.ptx["ld.global.cg.v4.f32"](other[j, 0], other[j, 1], other[j, 2], other[j, 3], partials.ptr_to([added, batch * _BATCH + j, tx, 0]))
                    for j in T.unroll(_BATCH):
                        if batch * _BATCH + j < chunks:
                            for e in T.unroll(4):
                                acc[(batch * _BATCH + j) * 4 + e] = acc[(batch * _BATCH + j) * 4 + e] + other[j, e]

    return give, take


def zero_flags_kernel(shape: tuple[int, int]) -> PrimFunc:
    """Return the launch ``f(flags[shape])`` that sets the flags of the one that follows to zero: one block."""
    count = shape[0] * shape[1]

    @T.prim_func
    def zero(flags: T.Buffer(shape, "uint32")):
        T.device_entry()
        bx = T.cta_id([1])
        tx = T.thread_id([_ZERO_THREADS])
        T.ptx.griddepcontrol.launch_dependents()
        T.ptx.griddepcontrol.wait()
        for f in T.serial((count + (_ZERO_THREADS - 1)) // _ZERO_THREADS):
            if f * _ZERO_THREADS + tx < count:
                flags[(f * _ZERO_THREADS + tx) // shape[1], (f * _ZERO_THREADS + tx) % shape[1]] = T.uint32(0)
    return zero.with_attr(*PDL)


def row_epilogue(problem: MatmulProblem) -> tuple[Inline, Inline]:
    """Return what loads the scales and biases of a thread's two rows, and what makes outputs of sixteen tokens.

    ``load_rows(global_scale, bias, row, row_scale, row_bias)``, row being the thread's g of a tile inside the weight.
    ``finish(pair, acc, row_scale, row_bias, residual, out, token, column, rows, packed)`` takes the thread's first token
    and column of the tile and the rows of ``out``. Where `packs_output`, ``packed[chunk * groups + h]`` gets two tokens
    of column ``column + 8 * h``, groups of eight columns being one if gated, else two; other outputs are stored.
    """
    gated, has_bias, has_residual = problem.activation == "silu_mul", problem.bias, problem.residual
    N, out_N, out_dtype = problem.N, problem.out_N, problem.out_dtype
    halves = output_columns(problem) // 8
    packs = packs_output(problem)

    @T.inline
    def load_rows(global_scale, bias, row, row_scale, row_bias):
        for h in T.unroll(2):
            row_scale[h] = global_scale[row + h * 8]
            if has_bias:
                row_bias[h] = bias[T.min(row + h * 8, N - 1)]

    @T.inline
    def finish(pair, acc, row_scale, row_bias, residual, out, token, column, rows, packed):
        value = T.alloc_local((2, 2, 2), "float32")  # [8-token chunk][row half][token]
        # Nor may all residuals be read ahead: registers
        T.evaluate(T.cuda.func_call("nvfp4_keep", acc[pair * 8], source_code=KEEP))
        for c in T.unroll(2):
            for t in T.unroll(2):
                z = T.meta_var((pair * 2 + c) * 4 + t)
                line: T.int32 = token + (pair * PAIR + c * CHUNK + t)
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
                    T.ptx[PACK[out_dtype]](packed[c * halves + h], value[c, h, 1], value[c, h, 0])

    return load_rows, finish
# fmt: on
