"""Eight consecutive codes to a packed word, in fewer instructions than `layout.move_bits` needs on a GPU.

Two forms of the same operations, beside each other: one for arrays and TIR, which tests compare with
`layout.PACK_MOVES`, and CUDA, which kernels call: ``T.cuda.func_call(PACK_NAME, word, source_code=cuda_pack())``.

Codes 0, 2, 4 of a word (and 1, 3, 5 of the word four bits further down) have one distance each to where the
layout wants their magnitudes, and the same distance and 6 more for their signs. No two of the nine products of
three codes and three distances meet, so that one multiplication moves three codes at once: on another pipe than
logic and shifts, of which memory would have to wait. The fourth pair is moved bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nvfp4_tvm import layout

#: Pairs of codes that the multiplications move.
_PAIRS = range(3)
#: Where their magnitudes (3 bits) arrive in the low half-word.
_PLACES = [layout.code_bit(2 * pair, 0) for pair in _PAIRS]
#: A product holds the half-word in its upper 16 bits.
_SHIFTS = [16 + place - 8 * pair for pair, place in zip(_PAIRS, _PLACES, strict=True)]
#: How much further than magnitudes signs move.
_SIGN_SHIFT = layout.code_bit(0, 3) - 3 - _PLACES[0]
MAGNITUDES = sum(0x7 << 8 * pair for pair in _PAIRS)
SIGNS = sum(0x8 << 8 * pair for pair in _PAIRS)
MAGNITUDE_FACTOR = sum(1 << shift for shift in _SHIFTS)
SIGN_FACTOR = MAGNITUDE_FACTOR << _SIGN_SHIFT
#: Where magnitudes lie in a product; signs, and nothing else of theirs, lie in the rest of its upper half.
MAGNITUDES_MOVED = sum(0x7 << 16 + place for place in _PLACES)


def _last_moves() -> tuple[tuple[int, int], ...]:
    """Return how bits 8..11 of both halves, the fourth pair, move: left shift, mask of where bits arrive."""
    masks: dict[int, int] = {}
    for bit in range(4):
        target = layout.code_bit(6, bit)
        shift = target - 8 - bit
        masks[shift] = masks.get(shift, 0) | 0x10001 << target
    return tuple(sorted(masks.items()))


LAST_MOVES = _last_moves()


def _upper_halves(low: Any, high: Any, const: Callable[[int], Any]) -> Any:
    return (low >> const(16)) | (high & const(0xFFFF0000))


def pack_word(word: Any, const: Callable[[int], Any] = np.uint32) -> Any:
    """Return what ``layout.move_bits(word, layout.PACK_MOVES)`` returns.

    Parameters
    ----------
    word : array or TIR expression
        uint32: eight codes, the first lowest.
    const : callable
        Makes a constant for it.
    """
    odd = word >> const(4)
    halves = []
    for nibbles in (word, odd):
        moved = (nibbles & const(MAGNITUDES)) * const(MAGNITUDE_FACTOR)
        signs = (nibbles & const(SIGNS)) * const(SIGN_FACTOR)
        halves.append((moved & const(MAGNITUDES_MOVED)) | (signs & const(0xFFFFFFFF ^ MAGNITUDES_MOVED)))
    result = _upper_halves(halves[0], halves[1], const)
    last = _upper_halves(word, odd, const)
    for shift, mask in LAST_MOVES:
        result = result | ((last << const(shift)) & const(mask))
    return result


#: The CUDA function ``void nvfp4_pack_word(unsigned& word)``.
PACK_NAME = "nvfp4_pack_word"


def cuda_pack() -> str:
    """Return the CUDA source of `PACK_NAME`."""
    moves = "\n".join(f"  word |= (last << {shift}) & {mask:#x}u;" for shift, mask in LAST_MOVES)
    # TVM emits a source once for each function that is called from it
    return f"""
#ifndef NVFP4_PACK_WORD
#define NVFP4_PACK_WORD
__device__ __forceinline__ unsigned nvfp4_move_codes(unsigned nibbles) {{
  const unsigned moved = (nibbles & {MAGNITUDES:#x}u) * {MAGNITUDE_FACTOR:#x}u;
  const unsigned signs = (nibbles & {SIGNS:#x}u) * {SIGN_FACTOR:#x}u;
  unsigned both;  // mask ? moved : signs, of which NVRTC makes two instructions
  asm("lop3.b32 %0, %1, %2, %3, 0xE4;" : "=r"(both) : "r"(moved), "r"(signs), "r"({MAGNITUDES_MOVED:#x}u));
  return both;
}}
__device__ __forceinline__ void {PACK_NAME}(unsigned& word) {{
  const unsigned odd = word >> 4, last = __byte_perm(word, odd, 0x7632);
  word = __byte_perm(nvfp4_move_codes(word), nvfp4_move_codes(odd), 0x7632);
{moves}
}}
#endif
"""
