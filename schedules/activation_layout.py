"""Activations as wgmma reads them: permuted, padded and swizzled tiles of tokens.

wgmma takes the decoded weight from registers. In step (i, j) of a 128-block (i = 0..3, j = 0..1) a thread of
quad lane q holds the codes at k = 32q + 8i + 4j + 0..3 (:mod:`nvfp4_tvm.layout`), and the instruction reads
them as the k-slots 2q, 2q + 1, 2q + 8, 2q + 9 of its 16 (PTX ISA, "Register Fragments for
wgmma.mma_async.m64nNk16"). The activations in shared memory must stand in the same order, so each 16-byte row
of a core matrix gathers four pairs that lie 64 bytes apart in x. TMA cannot permute pieces of 4 bytes: a
launch (:mod:`.activation_kernel`) does it once for all weight tiles, or each block for itself.

The result is the image of shared memory: for each tile of tokens and each 128-block of k two boxes of 64
k-slots, in K-major 128-byte rows with the 128-byte swizzle (16-byte chunk c of row r stands at chunk ``c ^ (r
% 8)``; PTX ISA, "Shared Memory Matrix Layout"), so that one bulk copy brings a block, without a tensor map.
Rows beyond M and columns beyond K are zeros, and nothing beyond them is read.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nvfp4_tvm import layout

#: uint32 words (pairs of activations) of one token in a box: 64 k-slots of 16 bits.
BOX_WORDS = 32
#: Boxes of a 128-block.
BOXES = 2
#: 16-byte pieces a quad lane's 32 consecutive k consist of.
PIECES = 4
PIECE_WORDS = 4
#: Attribute of a launch that may start before the one before it has ended (programmatic dependent launch).
PDL = ("tirx.kernel_launch_params", ["tirx.use_programtic_dependent_launch"])
#: Swizzle: chunks of 16 bytes in a 128-byte row.
_CHUNKS = 8


def tiles_shape(M: Any, K: int, tokens: int) -> tuple[Any, ...]:
    """Shape of the uint32 array of tiles of ``tokens`` rows: [token tiles, 128-blocks, boxes, tokens, words]."""
    return ((M + (tokens - 1)) // tokens, layout.tiles(1, K)[1], BOXES, tokens, BOX_WORDS)


def chunk_of(i: Any, j: Any, half: Any, row: Any) -> tuple[Any, Any]:
    """Box and 16-byte chunk of a token's row that hold slots ``8 * half + 0..7`` of step (i, j)."""
    return i // 2, (i % 2 * 4 + 2 * j + half) ^ (row % _CHUNKS)


def tile_activations(x: np.ndarray, tokens: int) -> np.ndarray:
    """The definition in NumPy: 16-bit ``x`` [M, K] to its tiles, uint32 of `tiles_shape`."""
    M, K = x.shape
    out = np.zeros(tiles_shape(M, K, tokens), np.uint32)
    padded = np.zeros((out.shape[0] * tokens, out.shape[1] * layout.TILE_K), np.uint16)
    padded[:M, :K] = x.view(np.uint16)
    pairs = padded.view(np.uint32).reshape(out.shape[0], tokens, out.shape[1], PIECES, PIECES, PIECE_WORDS)
    row = np.arange(tokens)
    for i in range(PIECES):
        for j in range(2):
            for half in range(2):
                box, chunk = chunk_of(i, j, half, row)
                for q in range(PIECES):
                    read = pairs[:, :, :, q, i, 2 * j + half]
                    out[:, :, box, row, chunk * PIECE_WORDS + q] = read.transpose(0, 2, 1)
    return out
