"""Decoding vectors of packed words and of scale bytes to float32 on CPUs; every form is exact.

The portable form assembles float32 bits with integer operations and is the definition. The x86 forms look
values up in registers. None of them meets a float32 subnormal on its way: those cost a microcode assist on
x86, and read as zero where the FTZ and DAZ bits are set.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from tvm.target import Target
from tvm.target.codegen import target_has_features
from tvm.tirx import Expr
from tvm.tirx.script.builder import ir as T

from nvfp4_tvm import layout
from nvfp4_tvm.numerics import E2M1_VALUES

# IEEE 754 binary32: lowest bit of the exponent, its bias, the sign.
_F32_EXPONENT, _F32_BIAS, _F32_SIGN = 23, 127, 31
# OCP OFP8 E4M3 and MX E2M1: bits of the mantissa and bias of the exponent.
_E4M3_MANTISSA, _E4M3_BIAS = 3, 7
_E2M1_MANTISSA, _E2M1_BIAS = 1, 1


class Decoder(ABC):
    """How one kind of CPU decodes; a kernel asks it for expressions over ``lanes`` words.

    Attributes
    ----------
    name : str
        Shown in logs.
    lanes : int
        float32 numbers in a vector register, a divisor of 16 (the words of a row in a 128-block).
    registers : int
        Vector registers of the instruction set.
    """

    name: str
    lanes: int
    registers: int

    @abstractmethod
    def e2m1(self, words: Expr, j: int) -> Expr:
        """Return float32 values of code number ``j`` (0..7) of each of ``lanes`` packed uint32 words."""

    def e4m3(self, scales: Expr) -> Expr:
        """Return float32 values of a vector of E4M3 bytes (uint8, any number of lanes, none NaN)."""
        lanes = scales.ty.dtype.lanes
        bits = T.cast(scales, f"uint32x{lanes}")
        magnitude = bits & T.uint32(0x7F)
        # Normal numbers keep exponent and mantissa; subnormal ones are mantissa * 2**(1 - bias - 3).
        rebias = (_F32_BIAS - _E4M3_BIAS) << _F32_EXPONENT
        normal = (magnitude << (_F32_EXPONENT - _E4M3_MANTISSA)) + T.uint32(rebias)
        unit = T.float32(2.0 ** (1 - _E4M3_BIAS - _E4M3_MANTISSA))
        subnormal = T.reinterpret(f"uint32x{lanes}", T.cast(magnitude, f"float32x{lanes}") * unit)
        chosen = T.Select(magnitude < T.uint32(1 << _E4M3_MANTISSA), subnormal, normal)
        sign = (bits & T.uint32(0x80)) << (_F32_SIGN - 7)
        return T.reinterpret(f"float32x{lanes}", chosen | sign)


class PortableDecoder(Decoder):
    """Integer operations that every LLVM target vectorises."""

    name, lanes, registers = "portable", 4, 16

    def e2m1(self, words: Expr, j: int) -> Expr:
        """See `Decoder.e2m1`."""
        lanes = words.ty.dtype.lanes
        magnitude = _magnitude(words, j)
        rebias = (_F32_BIAS - _E2M1_BIAS) << _F32_EXPONENT
        normal = (magnitude << (_F32_EXPONENT - _E2M1_MANTISSA)) + T.uint32(rebias)
        # The only subnormals are 0 and 0.5, whose float32 bits are 0 and those of 2**-1.
        subnormal = magnitude * T.uint32((_F32_BIAS - 1) << _F32_EXPONENT)
        chosen = T.Select(magnitude < T.uint32(1 << _E2M1_MANTISSA), subnormal, normal)
        return T.reinterpret(f"float32x{lanes}", chosen | _sign(words, j))


class AVX2Decoder(Decoder):
    """Magnitudes by ``vpermps ymm`` (the index is the low 3 bits of a lane), scales by F16C."""

    name, lanes, registers = "avx2", 8, 16
    features: tuple[str, ...] = ("avx2", "f16c", "fma")

    def e2m1(self, words: Expr, j: int) -> Expr:
        """See `Decoder.e2m1`."""
        magnitude = T.call_llvm_pure_intrin(
            "float32x8", "llvm.x86.avx2.permps", _table(range(8)), T.reinterpret("int32x8", _index(words, j))
        )
        return T.reinterpret("float32x8", T.reinterpret("uint32x8", magnitude) | _sign(words, j))

    def e4m3(self, scales: Expr) -> Expr:
        """See `Decoder.e4m3`; shifted into a float16's place a byte reads as its value times 2**-8."""
        lanes = scales.ty.dtype.lanes
        bits = T.cast(scales, f"uint16x{lanes}")
        half = ((bits & T.uint16(0x80)) << 8) | ((bits & T.uint16(0x7F)) << 7)
        return T.cast(T.reinterpret(f"float16x{lanes}", half), f"float32x{lanes}") * T.float32(2.0**8)


class AVX512Decoder(AVX2Decoder):
    """Magnitudes by ``vpermps zmm`` (index: low 4 bits), pair 3 with sign by ``vpermi2ps`` (low 5)."""

    name, lanes, registers = "avx512", 16, 32
    features = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "f16c", "fma")

    def e2m1(self, words: Expr, j: int) -> Expr:
        """See `Decoder.e2m1`."""
        low, window = _window(j)
        if window <= 5:
            # Entry i holds the code whose bits stand at their places of the window; other bits do not matter.
            codes = [
                sum((i >> (layout.code_bit(j, bit) - low) & 1) << bit for bit in range(4)) for i in range(32)
            ]
            index = T.reinterpret("int32x16", words >> low)
            return T.call_llvm_pure_intrin(
                "float32x16",
                "llvm.x86.avx512.vpermi2var.ps.512",
                _table(codes[:16]),
                index,
                _table(codes[16:]),
            )
        index = T.reinterpret("int32x16", _index(words, j))
        table = _table([*range(8), *range(8)])
        magnitude = T.call_llvm_pure_intrin("float32x16", "llvm.x86.avx512.permvar.sf.512", table, index)
        return T.reinterpret("float32x16", T.reinterpret("uint32x16", magnitude) | _sign(words, j))


def decoder_for(target: Target) -> Decoder:
    """Return the fastest form that the target's CPU features allow."""
    if target.attrs.get("mtriple", "").startswith("x86_64") or not target.attrs.get("mtriple"):
        for form in (AVX512Decoder, AVX2Decoder):
            if target_has_features(list(form.features), target):
                return form()
    return PortableDecoder()


def _window(j: int) -> tuple[int, int]:
    """Lowest bit of code ``j`` and the number of bits up to its highest."""
    bits = [layout.code_bit(j, bit) for bit in range(4)]
    return min(bits), max(bits) - min(bits) + 1


def _index(words: Expr, j: int) -> Expr:
    """Return (e1, e0, m) of code ``j`` in bits 2..0; the bits above are undefined."""
    m, e0, e1 = (layout.code_bit(j, bit) for bit in range(3))
    if (e0, e1) == (m + 1, m + 2):
        return words >> m
    return _magnitude(words, j)


def _magnitude(words: Expr, j: int) -> Expr:
    """Return (e1, e0, m) of code ``j`` in bits 2..0, all others zero."""
    moves: dict[int, int] = {}
    for bit in range(3):
        source = layout.code_bit(j, bit)
        moves[bit - source] = moves.get(bit - source, 0) | 1 << source
    return layout.move_bits(words, tuple(moves.items()), T.uint32)


def _sign(words: Expr, j: int) -> Expr:
    return (words << (_F32_SIGN - layout.code_bit(j, 3))) & T.uint32(1 << _F32_SIGN)


def _table(codes: Sequence[int]) -> Expr:
    return T.Shuffle([T.float32(float(E2M1_VALUES[code])) for code in codes], list(range(len(codes))))
