"""E2M1 codes and E4M3 bytes: values, encoding, decoding, two codes a byte.

Sources: E2M1 and its 16 values, OCP Microscaling Formats (MX) v1.0, 5.3.3; E4M3 (no infinities, maximum 448,
NaN at 0x7F and 0xFF), OCP 8-bit Floating Point (OFP8) v1.0.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike

from nvfp4_tvm.errors import NVFP4Error, ShapeError

GROUP_SIZE = 16
"""Weights along K that share one block scale (NVFP4)."""
E2M1_MAX = 6.0
"""Largest magnitude of E2M1."""
E4M3_MAX = 448.0
"""Largest finite magnitude of E4M3 (fn: no infinities)."""
E4M3_MIN = 2.0**-9
"""Smallest positive (subnormal) E4M3 number."""
E2M1_VALUES = np.array(
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0], np.float32
)
"""float32[16]: the value of each code; bit 3 is the sign, so code 8 is -0."""
E2M1_VALUES.setflags(write=False)

E4M3_VALUES = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
"""float32[256]: the value of each E4M3 byte; 0x7F and 0xFF are NaN, 0x80 is -0."""
E4M3_VALUES.setflags(write=False)


def decode_e2m1(codes: np.ndarray) -> np.ndarray:
    """Return the float32 values of E2M1 codes.

    Parameters
    ----------
    codes : np.ndarray
        uint8, any shape, values 0..15 (one code a byte).

    Raises
    ------
    ShapeError
        If `codes` is not uint8 or holds a value over 15.
    """
    _check_codes(codes)
    return E2M1_VALUES[codes]


def encode_e2m1(x: ArrayLike) -> np.ndarray:
    """Round to the nearest E2M1 number, ties to the even code, saturating at 6.

    The sign bit is set for every ``x < 0``, so -0.2 becomes code 8 (-0), while -0.0 becomes code 0: what both
    ModelOpt and compressed-tensors write.

    Parameters
    ----------
    x : array_like
        Floats of any shape; decided in float32 (float64 keeps its precision).

    Returns
    -------
    np.ndarray
        uint8 codes 0..15, the shape of `x`.

    Raises
    ------
    NVFP4Error
        If `x` holds a NaN, for which E2M1 has no code.
    """
    x = np.asarray(x)
    x = x if x.dtype == np.float64 else x.astype(np.float32)
    if np.isnan(x).any():
        raise NVFP4Error("encode_e2m1: found NaN, expected numbers: E2M1 has no NaN")
    return encode_e2m1_unchecked(x)


# Between codes c and c + 1 lies a midpoint; at it, an odd c moves up (to the even c + 1) and an even c stays.
# The last number is twice the distance between the two values.
_MIDPOINTS = (
    (0.25, np.greater, 1),
    (0.75, np.greater_equal, 1),
    (1.25, np.greater, 1),
    (1.75, np.greater_equal, 1),
    (2.5, np.greater, 2),
    (3.5, np.greater_equal, 2),
    (5.0, np.greater, 4),
)


def encode_e2m1_unchecked(x: np.ndarray) -> np.ndarray:
    """Do what `encode_e2m1` does, for floats known to hold no NaN."""
    a = np.abs(x)
    codes = np.left_shift(np.less(x, 0).view(np.uint8), 3)
    for midpoint, above, _ in _MIDPOINTS:
        codes += above(a, midpoint).view(np.uint8)
    return codes


def round_e2m1(a: np.ndarray) -> np.ndarray:
    """Round magnitudes to E2M1 values, as `encode_e2m1` does; a sum of bytes is faster than a look-up."""
    doubled = np.zeros(a.shape, np.uint8)
    for midpoint, above, gap in _MIDPOINTS:
        step = above(a, midpoint).view(np.uint8)
        doubled += step if gap == 1 else step * np.uint8(gap)
    return doubled * np.float32(0.5)


def pack_codes(codes: np.ndarray) -> np.ndarray:
    """Pack two codes a byte, even k in the low nibble: uint8 ``[..., K]`` to ``[..., K/2]``.

    Raises
    ------
    ShapeError
        If `codes` is not uint8, holds a value over 15, or K is odd.
    """
    _check_codes(codes)
    if codes.ndim == 0 or codes.shape[-1] % 2:
        raise ShapeError(f"pack_codes: found shape {codes.shape}, expected an even number of codes along K")
    return codes[..., 0::2] | (codes[..., 1::2] << 4)


def unpack_codes(packed: np.ndarray) -> np.ndarray:
    """Undo `pack_codes`: uint8 ``[..., K/2]`` to uint8 ``[..., K]`` with values 0..15.

    Raises
    ------
    ShapeError
        If `packed` is not uint8.
    """
    if packed.dtype != np.uint8 or packed.ndim == 0:
        raise ShapeError(f"unpack_codes: found {packed.dtype} {packed.shape}, expected uint8 [..., K/2]")
    codes = np.empty((*packed.shape[:-1], packed.shape[-1] * 2), np.uint8)
    np.bitwise_and(packed, 15, out=codes[..., 0::2])
    np.right_shift(packed, 4, out=codes[..., 1::2])
    return codes


def decode_e4m3(data: np.ndarray) -> np.ndarray:
    """Return the float32 values of E4M3 bytes (uint8 or ml_dtypes.float8_e4m3fn), any shape; NaN stays NaN.

    Raises
    ------
    ShapeError
        If `data` has another dtype.
    """
    if data.dtype == ml_dtypes.float8_e4m3fn:
        data = data.view(np.uint8)
    if data.dtype != np.uint8:
        raise ShapeError(f"decode_e4m3: found {data.dtype}, expected uint8 bytes or float8_e4m3fn")
    return E4M3_VALUES[data]


def encode_e4m3(x: ArrayLike) -> np.ndarray:
    """Round float32 to the nearest E4M3 byte, ties to even; saturates at 448; NaN stays NaN."""
    x = np.clip(np.asarray(x, np.float32), -E4M3_MAX, E4M3_MAX)
    return x.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)


def _check_codes(codes: np.ndarray) -> None:
    if codes.dtype != np.uint8:
        raise ShapeError(f"found codes of dtype {codes.dtype}, expected uint8 with values 0..15")
    if codes.size and codes.max() > 15:
        raise ShapeError(f"found the code {codes.max()}, expected 0..15: unpack packed bytes first")
