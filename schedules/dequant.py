"""Dequantize on CUDA: a packed weight as [N, K] of bfloat16, float16 or float32.

A thread turns one packed word into eight neighbouring elements of a row, so that warps store whole 256-byte
pieces of rows. The kernel is bound by its stores.
"""

from __future__ import annotations

from tvm.script import tirx as T
from tvm.target import Target
from tvm.tirx import PrimFunc

from nvfp4_tvm import layout
from nvfp4_tvm.errors import ShapeError
from nvfp4_tvm.schedules.intrin.fp4_decode import EPILOGUE_FACTOR, cuda_decoder, decode_name, scales_name
from nvfp4_tvm.schedules.kernel import CudaKernel, Launch

#: Output dtypes, with the conversion (PTX ISA, ``cvt``) of two float32 to a register; float32 needs none.
CONVERSIONS = {"bfloat16": "cvt.rn.bf16x2.f32", "float16": "cvt.rn.f16x2.f32", "float32": None}

#: Words of one tile and 128-block: one for each thread of a block.
THREADS = layout.TILE_N * layout.TILE_K // layout.CODES_PER_WORD
#: Words a thread has in flight.
UNROLL = 4


def dequantize_kernel(N: int, K: int, out_dtype: str, target: Target) -> CudaKernel | None:
    """Return the kernel ``f(words, scales, global_scale, out)``, or None off CUDA.

    ``out[n, k]`` is code times block scale, exact, times ``global_scale[n]`` rounded to float32, cast to
    ``out_dtype``: the definition of ``nvfp4.dequantize_packed``, bit for bit (for global scales below 2**121).

    Raises
    ------
    ShapeError
        If `out_dtype` is not one of `CONVERSIONS`, or the shape is no NVFP4 weight's.
    """
    if target.kind.name != "cuda":
        return None
    if out_dtype not in CONVERSIONS:
        raise ShapeError(
            f"dequantize [{N}, {K}]: out_dtype is {out_dtype}, expected one of {', '.join(CONVERSIONS)}"
        )
    layout.check_weight(N, K, "dequantize")
    arguments = ("words", "scales", "global_scale", "out")
    return CudaKernel("dequantize", (Launch(dequantize_prim_func(N, K, out_dtype), arguments, "tirx"),))


def dequantize_prim_func(N: int, K: int, out_dtype: str) -> PrimFunc:
    """Return the kernel of `dequantize_kernel`."""
    tiles, steps = layout.tiles(N, K)
    whole_blocks = tiles * steps % UNROLL == 0
    conversion = CONVERSIONS[out_dtype]
    index_dtype = "int32" if N * K < 2**31 else "int64"
    # bfloat16 holds code times scale exactly, whatever the output is
    decoder = cuda_decoder("bfloat16")
    decode, decode_scales = decode_name("bfloat16"), scales_name("bfloat16")

    # fmt: off
    @T.prim_func
    def dequantize(
        words: T.Buffer(layout.words_shape(N, K), "uint32"),
        scales: T.Buffer(layout.scales_shape(N, K), "uint32"),
        global_scale: T.Buffer(layout.global_scale_shape(N), "float32"),
        out: T.Buffer((N, K), out_dtype),
    ):
        T.device_entry()
        bx = T.cta_id([-(-tiles * steps // UNROLL)])
        tx = T.thread_id([THREADS])
        h: T.let = tx // 128
        lane: T.let = tx // 4 % 32
        i: T.let = tx % 4
        w = T.alloc_local((UNROLL,), "uint32")
        s = T.alloc_local((UNROLL,), "uint32")
        sf = T.alloc_local((2, 2), "uint32")       # [group, h]
        scale = T.alloc_local((1,), "uint32")
        wf = T.alloc_local((4,), "uint32")
        value = T.alloc_local((8,), "float32")
        packed = T.alloc_local((4,), "uint32")
        for u in T.unroll(UNROLL):
            block = T.meta_var(bx * UNROLL + u)
            if whole_blocks or block < tiles * steps:
                w[u] = words[block // steps, block % steps, h, lane, i]
                s[u] = scales[block // steps, block % steps, lane]
        for u in T.unroll(UNROLL):
            block = T.meta_var(bx * UNROLL + u)
            n: T.let = T.cast(block // steps * 16 + h * 8 + lane // 4, index_dtype)
            k: T.let = block % steps * 128 + lane % 4 * 32 + i * 8
            if n < N and k < K:
                T.evaluate(T.cuda.func_call(
                    decode_scales, sf[0, 0], sf[0, 1], sf[1, 0], sf[1, 1], s[u], source_code=decoder))
                scale[0] = T.Select(
                    h == 0, T.Select(i < 2, sf[0, 0], sf[1, 0]), T.Select(i < 2, sf[0, 1], sf[1, 1]))
                T.evaluate(T.cuda.func_call(
                    decode, wf[0], wf[1], wf[2], wf[3], w[u], scale[0], source_code=decoder))
                for j in T.unroll(4):
                    row_scale = T.meta_var(global_scale[n] * T.float32(EPILOGUE_FACTOR))
                    value[2 * j] = T.reinterpret("float32", wf[j] << T.uint32(16)) * row_scale
                    value[2 * j + 1] = T.reinterpret("float32", wf[j] & T.uint32(0xFFFF0000)) * row_scale
                if conversion is None:
                    for half in T.unroll(2):
                        T.ptx["st.global.v4.f32"](
                            out.ptr_to([n, k + half * 4]), *[value[half * 4 + j] for j in range(4)])
                else:
                    for j in T.unroll(4):
                        T.ptx[conversion](packed[j], value[2 * j + 1], value[2 * j])
                    T.ptx["st.global.v4.u32"](out.ptr_to([n, k]), *[packed[j] for j in range(4)])
    # fmt: on
    return dequantize
