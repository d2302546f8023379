"""Where the mma.sync GEMM's activations lie in shared memory: 16-byte chunks, swizzled.

A row's chunk i of piece q goes to slot ``i xor (row % 2 + 2 q')``, so that the eight chunks a quarter of a warp
reads at a time (two rows, four q) lie in different banks, and a row's chunks are still copied in the order they
have in memory, up to permutations of 64 bytes.
"""

from __future__ import annotations

from tvm.tirx import Expr

#: Elements of 16 bytes of activations.
CHUNK = 8


def slot_of(chunk: Expr, row: Expr, q: Expr, chunks: int) -> Expr:
    """Slot of a row's chunk in piece q of ``chunks`` chunks."""
    half = chunks // 2
    low, high = (chunk % 2 + row % 2) % 2, (chunk // 2 + q * half // 4) % half
    return low + high * 2 if half > 1 else low


def chunk_of(slot: Expr, row: Expr, q: Expr, chunks: int) -> Expr:
    """Chunk in a slot: the inverse of `slot_of`."""
    half = chunks // 2
    low, high = (slot % 2 + row % 2) % 2, (slot // 2 + (half - 1) * (q * half // 4)) % half
    return low + high * 2 if half > 1 else low
