"""The packed weight layout fragX, version 1: the only place that knows it.

One layout serves every kernel: GEMV and GEMM on ``mma.sync``, GEMM on ``wgmma``, dequantize, and the CPU.
N is padded to 16 and K to 128 with zero codes and zero scales; padded rows have global scale zero.

``words  uint32[N/16, K/128, 2, 32, 4]``
    Word ``[t, c, h, 4g + q, i]`` holds the 8 codes of row ``16t + 8h + g`` at ``k = 128c + 32q + 8i + 0..7``.
    Even k lie in the low half-word, odd k in the high one; :data:`BIT_POSITIONS` says where.
``scales uint32[N/16, K/128, 32]``
    Bytes of word ``[t, c, 4g + q]``, lowest first: the E4M3 block scales of (row g, group 2q), (g, 2q + 1),
    (g + 8, 2q), (g + 8, 2q + 1) of tile t and 128-block c.
``global_scale float32[16 * ceil(N/16)]``
    One FP32 scale per row, so that fused layers keep each part's own scale exactly.

Why this order. Lane ``4g + q`` of a warp owns row g and row g + 8 of ``mma.m16n8k16``'s A operand (PTX ISA,
"Matrix Fragments for mma.m16n8k16 with floating point type"), and reads 16 consecutive bytes for 32
consecutive k, so that a lane decodes one scale for 16 codes and its activations are 16-byte loads. The bit
positions let a lane turn a word into four registers of two bf16 (or fp16) each with 10 operations: a code's
sign lands in bit 15, its exponent and mantissa bits in bits 8, 7, 6, which read as bf16 is the code's value
times 2**-126.

The index functions take Python integers, NumPy arrays or TIR expressions alike: the NumPy packing below, the
TensorIR repack (:mod:`nvfp4_tvm.op.pack`) and the kernels' index maps all derive from them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nvfp4_tvm.codes import GROUP_SIZE
from nvfp4_tvm.errors import ShapeError

#: Written into compiled libraries and tuning records; a change of anything in this file increments it.
LAYOUT_VERSION = 1

TILE_N = 16
TILE_K = 128
CODES_PER_WORD = 8
GROUPS_PER_TILE = TILE_K // GROUP_SIZE
LANES = 32
WORDS_PER_LANE = 4

#: Bits of (sign, e1, e0, m) inside a half-word for pair p = (k % 8) // 2; k % 2 selects the half-word.
BIT_POSITIONS: tuple[tuple[int, int, int, int], ...] = (
    (15, 8, 7, 6),
    (12, 5, 4, 3),
    (9, 2, 1, 0),
    (11, 14, 13, 10),
)


def code_bit(j: int, bit: int) -> int:
    """Bit of a packed word that holds bit ``bit`` (0 = mantissa .. 3 = sign) of its code number ``j``."""
    pair, half = divmod(j, 2)
    return 16 * half + BIT_POSITIONS[pair][3 - bit]


def _moves(source_to_target: dict[int, int]) -> tuple[tuple[int, int], ...]:
    """Group single-bit moves by distance: ``((left shift, mask of source bits), ...)``."""
    masks: dict[int, int] = {}
    for source, target in source_to_target.items():
        masks[target - source] = masks.get(target - source, 0) | 1 << source
    return tuple(sorted(masks.items()))


_ALL_BITS = [(j, bit) for j in range(CODES_PER_WORD) for bit in range(4)]
#: From eight consecutive codes, code j in bits 4j..4j+3, to a packed word; and back.
PACK_MOVES = _moves({4 * j + bit: code_bit(j, bit) for j, bit in _ALL_BITS})
UNPACK_MOVES = _moves({code_bit(j, bit): 4 * j + bit for j, bit in _ALL_BITS})
#: `PACK_MOVES` in three steps of 36 operations instead of 46: swap bits 0 and 1, then 1 and 2 of the code's
#: number, which brings even codes into the low half-word; then move the bits of both halves alike.
_SWAPPED = [(0, 2, 1, 3, 4, 6, 5, 7)[j] for j in range(CODES_PER_WORD)]
_HALVED = [j % 2 * 4 + j // 2 for j in range(CODES_PER_WORD)]
PACK_STEPS = (
    _moves({4 * j + bit: 4 * _SWAPPED[j] + bit for j, bit in _ALL_BITS}),
    _moves({4 * _SWAPPED[j] + bit: 4 * _HALVED[j] + bit for j, bit in _ALL_BITS}),
    _moves({4 * _HALVED[j] + bit: code_bit(j, bit) for j, bit in _ALL_BITS}),
)


def move_bits(word: Any, moves: Sequence[tuple[int, int]], const: Callable[[int], Any] = np.uint32) -> Any:
    """Permute the bits of uint32 ``word`` (array or TIR expression; ``const`` makes its uint32 constants)."""
    result = None
    for shift, mask in moves:
        part = word & const(mask)
        if shift > 0:
            part = part << const(shift)
        elif shift < 0:
            part = part >> const(-shift)
        result = part if result is None else result | part
    return result


def tiles(N: int, K: int) -> tuple[int, int]:
    """Number of tiles along N and along K."""
    return -(-N // TILE_N), -(-K // TILE_K)


def words_shape(N: int, K: int) -> tuple[int, int, int, int, int]:
    """Shape of ``words`` for a weight [N, K]."""
    return (*tiles(N, K), 2, LANES, WORDS_PER_LANE)


def scales_shape(N: int, K: int, group_size: int = GROUP_SIZE) -> tuple[int, int, int]:
    """Shape of ``scales`` for a weight [N, K]; two lanes share a word where a group is all 32 k of a lane."""
    return (*tiles(N, K), LANES * GROUP_SIZE // group_size)


def global_scale_shape(N: int) -> tuple[int]:
    """Shape of ``global_scale`` for N rows."""
    return (tiles(N, 1)[0] * TILE_N,)


def word_index(n: Any, k: Any) -> tuple[Any, Any, Any, Any, Any]:
    """Index into ``words`` of the word that holds code (n, k)."""
    lane = n % 8 * 4 + k % TILE_K // 32
    return n // TILE_N, k // TILE_K, n % TILE_N // 8, lane, k % 32 // CODES_PER_WORD


def word_origin(t: Any, c: Any, h: Any, lane: Any, i: Any) -> tuple[Any, Any]:
    """Return (n, k) of the first code in word ``[t, c, h, lane, i]``; the inverse of :func:`word_index`."""
    return t * TILE_N + h * 8 + lane // 4, c * TILE_K + lane % 4 * 32 + i * CODES_PER_WORD


def scale_index(n: Any, group: Any, *, group_size: int = GROUP_SIZE) -> tuple[Any, Any, Any, Any]:
    """Index into ``scales`` and the byte (0 = lowest) that hold the block scale of (n, group).

    NVFP4's groups are 16; groups of 32 keep the bytes of rows g and g + 8 of one lane side by side.
    """
    if group_size == 2 * GROUP_SIZE:
        lane = n % 8 * 4 + group % 4
        return n // TILE_N, group // 4, lane // 2, lane % 2 * 2 + n % TILE_N // 8
    lane = n % 8 * 4 + group % GROUPS_PER_TILE // 2
    return n // TILE_N, group // GROUPS_PER_TILE, lane, n % TILE_N // 8 * 2 + group % 2


def scale_origin(t: Any, c: Any, lane: Any, byte: Any) -> tuple[Any, Any]:
    """Return (n, group) of a byte of ``scales[t, c, lane]``; the inverse of :func:`scale_index`."""
    return t * TILE_N + byte // 2 * 8 + lane // 4, c * GROUPS_PER_TILE + lane % 4 * 2 + byte % 2


def check_weight(N: int, K: int, what: str = "weight") -> None:
    """Refuse shapes that NVFP4 cannot have.

    Raises
    ------
    ShapeError
        If N < 1, K < 16 or K is not a multiple of 16.
    """
    if N < 1 or K < GROUP_SIZE or K % GROUP_SIZE:
        raise ShapeError(
            f"{what}: shape [{N}, {K}] cannot be NVFP4: K must be a positive multiple of {GROUP_SIZE} "
            f"and N at least 1; keep this layer unquantized"
        )


@dataclass(frozen=True)
class PackedWeight:
    """An NVFP4 weight [N, K] in fragX.

    Attributes
    ----------
    N, K : int
        The weight's own shape, before padding.
    words : numpy.ndarray
        uint32, :func:`words_shape`.
    scales : numpy.ndarray
        uint32, :func:`scales_shape`.
    global_scale : numpy.ndarray
        float32, :func:`global_scale_shape`.
    """

    N: int
    K: int
    words: np.ndarray
    scales: np.ndarray
    global_scale: np.ndarray

    def __post_init__(self) -> None:
        check_weight(self.N, self.K, "packed weight")
        for name, dtype, shape in (
            ("words", np.uint32, words_shape(self.N, self.K)),
            ("scales", np.uint32, scales_shape(self.N, self.K)),
            ("global_scale", np.float32, global_scale_shape(self.N)),
        ):
            array = getattr(self, name)
            if array.dtype != dtype or array.shape != shape:
                raise ShapeError(
                    f"packed weight [{self.N}, {self.K}]: {name} is {array.dtype}{list(array.shape)}, "
                    f"expected {np.dtype(dtype)}{list(shape)} of layout version {LAYOUT_VERSION}; pack it again"
                )

    @property
    def nbytes(self) -> int:
        """Bytes of the three arrays."""
        return self.words.nbytes + self.scales.nbytes + self.global_scale.nbytes


def pack_codes(codes: np.ndarray) -> np.ndarray:
    """Pack uint8 codes [N, K/2] (even k in the low nibble) into ``words``.

    Returns
    -------
    numpy.ndarray
        uint32, :func:`words_shape`.

    Raises
    ------
    ShapeError
        If the dtype is not uint8 or K is not a multiple of 16.
    """
    if codes.dtype != np.uint8 or codes.ndim != 2:
        raise ShapeError(f"codes: found {codes.dtype}{list(codes.shape)}, expected uint8[N, K/2]")
    N, K = codes.shape[0], codes.shape[1] * 2
    check_weight(N, K, "codes")
    T, C = tiles(N, K)
    padded = np.zeros((T * TILE_N, C * TILE_K // CODES_PER_WORD), "<u4")
    padded[:N, : K // CODES_PER_WORD] = np.ascontiguousarray(codes).view("<u4")
    n, k = word_origin(*np.ix_(*(np.arange(extent) for extent in words_shape(N, K))))
    return move_bits(padded[n, k // CODES_PER_WORD], PACK_MOVES)


def unpack_codes(words: np.ndarray, N: int, K: int) -> np.ndarray:
    """Inverse of :func:`pack_codes`: uint8 codes [N, K/2]."""
    n, k = np.ix_(np.arange(N), np.arange(0, K, CODES_PER_WORD))
    canonical = move_bits(words[word_index(n, k)], UNPACK_MOVES)
    return canonical.astype("<u4").view(np.uint8).reshape(N, K // 2)


def pack_scales(scales: np.ndarray) -> np.ndarray:
    """Pack E4M3 bytes, uint8 [N, K/16], into ``scales``.

    Returns
    -------
    numpy.ndarray
        uint32, :func:`scales_shape`.
    """
    if scales.dtype != np.uint8 or scales.ndim != 2:
        raise ShapeError(f"scales: found {scales.dtype}{list(scales.shape)}, expected uint8[N, K/16]")
    N, K = scales.shape[0], scales.shape[1] * GROUP_SIZE
    check_weight(N, K, "scales")
    T, C = tiles(N, K)
    padded = np.zeros((T * TILE_N, C * GROUPS_PER_TILE), np.uint8)
    padded[:N, : K // GROUP_SIZE] = scales
    n, group = scale_origin(*np.ix_(*(np.arange(extent) for extent in (*scales_shape(N, K), 4))))
    return np.ascontiguousarray(padded[n, group]).view("<u4").astype(np.uint32, copy=False)[..., 0]


def unpack_scales(scales: np.ndarray, N: int, K: int) -> np.ndarray:
    """Inverse of :func:`pack_scales`: uint8 [N, K/16]."""
    t, c, lane, byte = scale_index(*np.ix_(np.arange(N), np.arange(K // GROUP_SIZE)))
    return (
        np.ascontiguousarray(scales.astype("<u4")).view(np.uint8).reshape(*scales.shape, 4)[t, c, lane, byte]
    )


def pack_global_scale(global_scale: np.ndarray | float, N: int) -> np.ndarray:
    """Spread a scalar, [1] or [N] FP32 global scale over the rows; padded rows get zero."""
    rows = np.asarray(global_scale, np.float32).reshape(-1)
    if rows.size not in (1, N):
        raise ShapeError(f"global scale: found {rows.size} values, expected 1 or one per row ({N})")
    padded = np.zeros(global_scale_shape(N), np.float32)
    padded[:N] = rows
    return padded


def pack(codes: np.ndarray, scales: np.ndarray, global_scale: np.ndarray | float) -> PackedWeight:
    """Pack a canonical NVFP4 weight.

    Parameters
    ----------
    codes : numpy.ndarray
        uint8 [N, K/2], even k in the low nibble.
    scales : numpy.ndarray
        E4M3 bytes, uint8 [N, K/16].
    global_scale : numpy.ndarray or float
        FP32, one value or one per row.
    """
    N, K = codes.shape[0], codes.shape[1] * 2
    if scales.shape != (N, K // GROUP_SIZE):
        raise ShapeError(
            f"scales: found shape {list(scales.shape)}, expected [{N}, {K // GROUP_SIZE}] "
            f"for codes of a weight [{N}, {K}]"
        )
    return PackedWeight(N, K, pack_codes(codes), pack_scales(scales), pack_global_scale(global_scale, N))


def unpack(weight: PackedWeight) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return canonical ``(codes uint8[N, K/2], scales uint8[N, K/16], global_scale float32[N])``."""
    N, K = weight.N, weight.K
    return (
        unpack_codes(weight.words, N, K),
        unpack_scales(weight.scales, N, K),
        weight.global_scale[:N].copy(),
    )


def concat(parts: Sequence[PackedWeight]) -> PackedWeight:
    """Fuse packed weights along N (QKV, gate_up), each part keeping its own global scale exactly.

    Whole tiles are concatenated as they are. A part whose N is not a multiple of 16 ends in padding, so what
    follows it must move: only then are the parts unpacked and packed again.
    """
    if len({part.K for part in parts}) != 1:
        raise ShapeError(f"concat: parts need one K, found {[part.K for part in parts]}")
    N, K = sum(part.N for part in parts), parts[0].K
    if any(part.N % TILE_N for part in parts[:-1]):
        codes, scales, rows = (np.concatenate(arrays) for arrays in zip(*map(unpack, parts), strict=True))
        return pack(codes, scales, rows)
    arrays = ([getattr(part, field) for part in parts] for field in ("words", "scales", "global_scale"))
    return PackedWeight(N, K, *map(np.concatenate, arrays))
