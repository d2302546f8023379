"""The FP4 + E4M3 decoder of the tensor-core kernels: a packed word and its block scale to eight bf16 or fp16.

Two forms of the same bit operations, beside each other: TIR, which runs on every target and is what schedules
are tested with, and CUDA, which kernels call through ``T.cuda.func_call(name, ..., source_code=source)``.

Codes (8 of a word, layout.BIT_POSITIONS). bf16: each of four registers gets a pair's two codes with the sign in
bit 15 and e1, e0, m in bits 8, 7, 6 of its half; as bf16 (8 exponent bits from bit 7, bias 127) that is
value * 2**-126, 0.5 being subnormal. fp16: e1, e0, m in bits 11, 10, 9: value * 2**-14 (5 exponent bits from
bit 10, bias 15).

Block scales (4 of a word, layout.scale_index): bits 6..0 of a byte become value * 2**-120 in bf16 and
value * 2**-8 in fp16, E4M3 having 4 exponent bits of bias 7; subnormals stay subnormal. They are multiplied up,
in bf16 by 2**120 * 2**119 (no single bf16 reaches 2**239), in fp16 by 2**15, so that for both types

    decoded code * decoded scale = code * scale * 2**-7

The product has at most 6 significant bits, its last bit is at least 2**-17 and its magnitude at most
2688 * 2**-7 = 21, so it is exact in both types. The epilogue multiplies by :data:`EPILOGUE_FACTOR`.
"""

from __future__ import annotations

from tvm import tirx

#: What accumulators of decoded products are multiplied by, with the global scale, in fp32.
EPILOGUE_FACTOR = 128.0

#: Sign, e1, e0, m of bf16 patterns with tiny exponents, in both halves of a register.
BF16_CODE_MASK = 0x81C081C0
#: The same of fp16, in two parts.
FP16_SIGN_MASK = 0x80008000
FP16_MAGNITUDE_MASK = 0x0E000E00

#: 2**120 and 2**119 twice, as bf16 pairs; their product with a scale's pattern is scale * 2**119.
BF16_2_POW_120 = 0x7B807B80
BF16_2_POW_119 = 0x7B007B00
#: 2**15 twice, as an fp16 pair.
FP16_2_POW_15 = 0x78007800
#: -0.0 twice, in either type: the addend of a multiplication by ``fma`` that leaves the sign of zero alone.
MINUS_ZERO = 0x80008000

#: PTX suffix of a pair, by activation dtype.
PAIR = {"bfloat16": "bf16x2", "float16": "f16x2"}

_MUL = """
__device__ __forceinline__ unsigned nvfp4_mul_{pair}(unsigned a, unsigned b) {{
  unsigned d; asm("fma.rn.{pair} %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"({MINUS_ZERO:#x}u)); return d;
}}
"""

# lop3-friendly: every line is a shift (or multiply) and one three-input logic operation
_DECODE = {
    "bfloat16": """
__device__ __forceinline__ void nvfp4_decode_bf16x2(
    unsigned& d0, unsigned& d1, unsigned& d2, unsigned& d3, unsigned v, unsigned s) {{
  const unsigned t = v >> 6;
  d0 = nvfp4_mul_bf16x2(v & {BF16_CODE_MASK:#x}u, s);
  d1 = nvfp4_mul_bf16x2((v * 8u) & {BF16_CODE_MASK:#x}u, s);
  d2 = nvfp4_mul_bf16x2((v * 64u) & {BF16_CODE_MASK:#x}u, s);
  d3 = nvfp4_mul_bf16x2((((t & 0x00300030u) * 1028u) & 0x80408040u) | (t & 0x01800180u), s);
}}
""",
    "float16": """
__device__ __forceinline__ void nvfp4_decode_f16x2(
    unsigned& d0, unsigned& d1, unsigned& d2, unsigned& d3, unsigned v, unsigned s) {{
  const unsigned v3 = v << 3, v6 = v << 6, v9 = v << 9;
  d0 = nvfp4_mul_f16x2((v3 & {FP16_MAGNITUDE_MASK:#x}u) | (v & {FP16_SIGN_MASK:#x}u), s);
  d1 = nvfp4_mul_f16x2((v6 & {FP16_MAGNITUDE_MASK:#x}u) | (v3 & {FP16_SIGN_MASK:#x}u), s);
  d2 = nvfp4_mul_f16x2((v9 & {FP16_MAGNITUDE_MASK:#x}u) | (v6 & {FP16_SIGN_MASK:#x}u), s);
  const unsigned e = ((v >> 3) & 0x0C000C00u) | ((v >> 1) & 0x02000200u);
  d3 = nvfp4_mul_f16x2(e | ((v << 4) & {FP16_SIGN_MASK:#x}u), s);
}}
""",
}

_SCALES = {
    "bfloat16": """
__device__ __forceinline__ void nvfp4_scale_pair_bf16x2(unsigned& row0, unsigned& row8, unsigned y) {{
  y = nvfp4_mul_bf16x2(nvfp4_mul_bf16x2(y << 4, {BF16_2_POW_120:#x}u), {BF16_2_POW_119:#x}u);
  row0 = __byte_perm(y, 0, 0x1010); row8 = __byte_perm(y, 0, 0x3232);
}}
__device__ __forceinline__ void nvfp4_scales_bf16x2(
    unsigned& group0_row0, unsigned& group0_row8, unsigned& group1_row0, unsigned& group1_row8, unsigned s) {{
  nvfp4_scale_pair_bf16x2(group0_row0, group0_row8, s & 0x00FF00FFu);
  nvfp4_scale_pair_bf16x2(group1_row0, group1_row8, (s >> 8) & 0x00FF00FFu);
}}
""",
    "float16": """
__device__ __forceinline__ void nvfp4_scale_pair_f16x2(unsigned& row0, unsigned& row8, unsigned y) {{
  y = nvfp4_mul_f16x2(y << 7, {FP16_2_POW_15:#x}u);
  row0 = __byte_perm(y, 0, 0x1010); row8 = __byte_perm(y, 0, 0x3232);
}}
__device__ __forceinline__ void nvfp4_scales_f16x2(
    unsigned& group0_row0, unsigned& group0_row8, unsigned& group1_row0, unsigned& group1_row8, unsigned s) {{
  nvfp4_scale_pair_f16x2(group0_row0, group0_row8, s & 0x00FF00FFu);
  nvfp4_scale_pair_f16x2(group1_row0, group1_row8, (s >> 8) & 0x00FF00FFu);
}}
""",
}


def cuda_decoder(dtype: str) -> str:
    """Return the CUDA functions of the decoder for activations of ``dtype``, each defined once.

    ``nvfp4_decode_<pair>(d0, d1, d2, d3, word, scale)``
        d_p gets codes 2p (low half) and 2p + 1 (high half) of ``word`` times ``scale`` (a pair of equal halves).
    ``nvfp4_scales_<pair>(group0_row0, group0_row8, group1_row0, group1_row8, scales)``
        The four scales of a lane's word, each as a pair of equal halves: groups 2q and 2q + 1 of rows g and g + 8.
    """
    constants = {name: value for name, value in globals().items() if isinstance(value, int)}
    source = (_MUL + _DECODE[dtype] + _SCALES[dtype]).format(pair=PAIR[dtype], **constants)
    # TVM emits a source once for each function that is called from it
    guard = f"NVFP4_DECODER_{PAIR[dtype].upper()}"
    return f"\n#ifndef {guard}\n#define {guard}{source}#endif\n"


def decode_name(dtype: str) -> str:
    """Name of the CUDA function that decodes a word."""
    return f"nvfp4_decode_{PAIR[dtype]}"


def scales_name(dtype: str) -> str:
    """Name of the CUDA function that decodes the scales of a lane."""
    return f"nvfp4_scales_{PAIR[dtype]}"


def pair_bits(value: tirx.Expr, dtype: str) -> tirx.Expr:
    """Return the 16 bits of a float32 that ``dtype`` holds exactly, as uint32.

    bf16 is the upper half of a float32, which says it without a bf16 expression: TVM 0.27 takes those for integers
    inside a reinterpretation.
    """
    if dtype == "bfloat16":
        return tirx.reinterpret("uint32", value) >> _u32(16)
    return tirx.reinterpret("uint16", value.astype("float16")).astype("uint32")


def half_value(register: tirx.Expr, half: tirx.Expr | int, dtype: str) -> tirx.Expr:
    """Return the low (0) or high (1) number of a pair as float32."""
    shift = tirx.convert(half).astype("uint32") * _u32(16)
    bits = (register >> shift) & _u32(0xFFFF)
    if dtype == "bfloat16":
        return tirx.reinterpret("float32", bits << _u32(16))
    return tirx.reinterpret("float16", bits.astype("uint16")).astype("float32")


def pair(low: tirx.Expr, high: tirx.Expr, dtype: str) -> tirx.Expr:
    """Return two float32 that ``dtype`` holds exactly as one register."""
    return pair_bits(low, dtype) | (pair_bits(high, dtype) << _u32(16))


def decoded(word: tirx.Expr, p: tirx.Expr | int, scale: tirx.Expr, dtype: str) -> tirx.Expr:
    """TIR form of ``nvfp4_decode``: register d_p of a word; ``p`` may be an expression."""
    p = tirx.convert(p)
    code = _patterns(word, dtype)
    bits = code[3]
    for j in range(3):
        bits = tirx.Select(p == j, code[j], bits)
    factor = half_value(scale, 0, dtype)
    return pair(half_value(bits, 0, dtype) * factor, half_value(bits, 1, dtype) * factor, dtype)


def _patterns(v: tirx.Expr, dtype: str) -> list[tirx.Expr]:
    """Bits of the four pairs of codes of a word, by the operations of the CUDA form."""
    if dtype == "bfloat16":
        mask, t = _u32(BF16_CODE_MASK), v >> _u32(6)
        last = (((t & _u32(0x00300030)) * _u32(1028)) & _u32(0x80408040)) | (t & _u32(0x01800180))
        return [v & mask, (v * _u32(8)) & mask, (v * _u32(64)) & mask, last]
    sign, magnitude = _u32(FP16_SIGN_MASK), _u32(FP16_MAGNITUDE_MASK)
    v3, v6, v9 = (v << _u32(shift) for shift in (3, 6, 9))
    last = ((v >> _u32(3)) & _u32(0x0C000C00)) | ((v >> _u32(1)) & _u32(0x02000200))
    return [
        (v3 & magnitude) | (v & sign),
        (v6 & magnitude) | (v3 & sign),
        (v9 & magnitude) | (v6 & sign),
        last | ((v << _u32(4)) & sign),
    ]


def decoded_scale(y: tirx.Expr, row: tirx.Expr | int, dtype: str) -> tirx.Expr:
    """TIR form of ``nvfp4_scale_pair``: the scale of row g (``row`` 0) or g + 8 (1), twice.

    ``y`` holds their bytes in bits 0..7 and 16..23, as :func:`scale_bytes` puts them there.
    """
    if dtype == "bfloat16":
        value = half_value(y << _u32(4), row, dtype)
        value = value * tirx.const(2.0**120, "float32") * tirx.const(2.0**119, "float32")
    else:
        value = half_value(y << _u32(7), row, dtype) * tirx.const(2.0**15, "float32")
    return pair(value, value, dtype)


def scale_bytes(word: tirx.Expr, group: tirx.Expr | int, group_size: int = 16) -> tirx.Expr:
    """Return the bytes of rows g and g + 8 of one group in bits 0..7 and 16..23.

    ``group`` is 0 or 1: which of a lane's two groups, or with groups of 32 which of the word's two lanes
    (:func:`nvfp4_tvm.layout.scale_index`).
    """
    if group_size == 32:
        half = word >> (tirx.convert(group).astype("uint32") * _u32(16))
        return (half & _u32(0xFF)) | ((half & _u32(0xFF00)) << _u32(8))
    return (word >> (tirx.convert(group).astype("uint32") * _u32(8))) & _u32(0x00FF00FF)


def _u32(value: int) -> tirx.Expr:
    return tirx.const(value, "uint32")


def scale_pair_name(dtype: str) -> str:
    """Name of the CUDA function that decodes the two scales of one group of a lane."""
    return f"nvfp4_scale_pair_{PAIR[dtype]}"
