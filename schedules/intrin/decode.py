"""E2M1 and E4M3 decoded to float32 by bit operations in TIR: the portable form, right on every target.

Both formats are read as float16 bit patterns: sign to bit 15, exponent and mantissa to where binary16 keeps its
lowest exponent bits (IEEE 754: 1 sign, 5 exponent, 10 mantissa bits, bias 15). The pattern's value is then the
number times a power of two, and subnormals of the small format become subnormals of binary16, whose conversion
to float32 is exact and, unlike float32 subnormals, not subject to flush-to-zero modes.

- E2M1 (bias 1, OCP Microscaling v1.0): e1 e0 m to bits 11, 10, 9; value * 2**(1 - 15).
- E4M3 (bias 7, OCP 8-bit Floating Point v1.0): e3..e0 m2..m0 to bits 13..7; value * 2**(7 - 15).
"""

from __future__ import annotations

from tvm import tirx

from nvfp4_tvm import layout

E2M1_FACTOR = 2.0**14
E4M3_FACTOR = 2.0**8


def u32(value: int) -> tirx.Expr:
    """Return a uint32 constant; plain integers would turn the expression into int32."""
    return tirx.const(value, "uint32")


def _half_bits_to_float32(bits: tirx.Expr, factor: float) -> tirx.Expr:
    half = tirx.reinterpret("float16", bits.astype("uint16"))
    return half.astype("float32") * tirx.const(factor, "float32")


def e2m1_to_float32(code: tirx.Expr) -> tirx.Expr:
    """Return the float32 value of a code in bits 3..0 of a uint32; higher bits are ignored."""
    return _half_bits_to_float32((code & u32(8)) << u32(12) | (code & u32(7)) << u32(9), E2M1_FACTOR)


def e4m3_to_float32(byte: tirx.Expr) -> tirx.Expr:
    """Return the float32 value of an E4M3 byte in bits 7..0 of a uint32; NaN bytes are not preserved.

    Readers refuse NaN scales (0x7F, 0xFF), so the kernels need not carry them.
    """
    return _half_bits_to_float32((byte & u32(0x80)) << u32(8) | (byte & u32(0x7F)) << u32(7), E4M3_FACTOR)


def packed_code(word: tirx.Expr, j: tirx.Expr) -> tirx.Expr:
    """Return code ``j`` (0..7, may be symbolic) of a packed word in bits 3..0."""
    return (layout.move_bits(word, layout.UNPACK_MOVES, u32) >> (j * 4).astype("uint32")) & u32(15)


def packed_weight(
    words: tirx.Var, scales: tirx.Var, n: tirx.Expr, k: tirx.Expr, lead: tuple[tirx.Expr, ...] = ()
) -> tirx.Expr:
    """Return code times block scale of element (n, k) of a packed weight as float32, which holds it exactly.

    ``lead`` is which of several weights, where the arrays have leading axes for that.
    """
    word = words[(*lead, *layout.word_index(n, k))]
    *scale_index, byte = layout.scale_index(n, k // layout.GROUP_SIZE)
    scale = scales[(*lead, *scale_index)] >> (byte * 8).astype("uint32")
    return e2m1_to_float32(packed_code(word, k % layout.CODES_PER_WORD)) * e4m3_to_float32(scale)
