"""The repack on the CPU: canonical rows, wherever they lie, into the packed layout at the speed of memory.

The kernel takes the address of each packed row's codes and scales: rows of mapped files, of several fused parts,
in any order; rows of the padding point at zeros. A row's 16 words of a 128-block lie together in the layout
(`layout.word_index`), so that packing is a permutation of bits inside vectors and a copy of 64-byte pieces.
Each row is read from its start to its end, which the processor prefetches, and the pieces are written past the
caches: written through them, every line would be read from memory first.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm.script.ir_builder import IRBuilder
from tvm.tirx import Buffer, Expr, PrimFunc
from tvm.tirx.script.builder import ir as T

from nvfp4_tvm import layout
from nvfp4_tvm.schedules.addressed import advance, helpers, load, stream, stream_end
from nvfp4_tvm.schedules.cpu_common import ROW_WORDS, argument, named

KERNEL = "nvfp4_cpu_repack"
#: Bytes of a row's codes and of its scales in a 128-block.
CODE_BYTES, SCALE_BYTES = layout.TILE_K // 2, layout.GROUPS_PER_TILE


def cpu_repack() -> PrimFunc:
    """Return ``f(code_rows uint64[R], scale_rows uint64[R], K, words, block_scales)`` for llvm targets.

    R is a multiple of 16, the packed rows; the addresses are of K/2 bytes of codes and K/16 of scales, K a
    multiple of 16. ``words`` and ``block_scales`` are flat, aligned to `ALIGNMENT` bytes.
    """
    with IRBuilder() as builder, T.prim_func():
        T.func_name(KERNEL)
        T.func_attr({"global_symbol": KERNEL, "tirx.is_scheduled": 1, "tirx.noalias": True})
        rows, sizes = T.int64(), (T.int64(), T.int64())
        code_rows = argument("code_rows", (rows,), "uint64")
        scale_rows = argument("scale_rows", (rows,), "uint64")
        K = named("K", T.arg("K", T.int64()))
        words, block_scales = (
            argument(name, (size,), "uint32")
            for name, size in zip(("words", "block_scales"), sizes, strict=True)
        )
        vectors = [("uint32", ROW_WORDS), ("uint32", 1), ("uint16", 4), ("uint8", 1)]
        with (
            helpers(loads=vectors, streams=vectors[:1]),
            T.parallel(T.truncdiv(rows, T.int64(layout.TILE_N))) as t,
        ):
            with T.serial(T.int64(layout.TILE_N)) as n:
                _pack_codes(code_rows[t * layout.TILE_N + n], K, words, t, n)
            with T.serial(T.int64(layout.TILE_N // 2)) as g:
                low = t * layout.TILE_N + g
                _pack_scales(scale_rows[low], scale_rows[low + layout.TILE_N // 2], K, block_scales, t, g)
            stream_end()
    return builder.get()


def _blocks(K: Expr) -> tuple[Expr, Expr]:
    """Return the whole 128-blocks of a row, and those with what is left of it."""
    size = T.int64(layout.TILE_K)
    return T.Bind(T.truncdiv(K, size)), T.Bind(T.truncdiv(K + (size - 1), size))


def _pack_codes(row: Expr, K: Expr, words: Buffer, t: Expr, n: Expr) -> None:
    """Pack the codes of row n of tile t."""
    row = T.Bind(row)
    whole, blocks = _blocks(K)
    _, _, h, lane, first = layout.word_index(n, 0)

    def at(c: Expr) -> Expr:
        return (((t * blocks + c) * 2 + h) * layout.LANES + lane) * layout.WORDS_PER_LANE + first

    with T.serial(whole) as c:
        canonical = load("uint32", ROW_WORDS, advance(row, c * CODE_BYTES))
        packed = _permuted(canonical, lambda value: T.Broadcast(T.uint32(value), ROW_WORDS))
        stream(T.address_of(words[at(c)]), packed)
    with T.If(whole < blocks), T.Then():
        left = T.Bind(T.truncdiv(K - whole * layout.TILE_K, T.int64(layout.CODES_PER_WORD)))
        with T.serial(left) as w:
            canonical = load("uint32", 1, advance(row, whole * CODE_BYTES + w * 4))
            T.buffer_store(words, _permuted(canonical, T.uint32), [at(whole) + w])
        with T.serial(ROW_WORDS - left) as w:
            T.buffer_store(words, T.uint32(0), [at(whole) + left + w])


def _permuted(word: Expr, const: Callable[[int], Expr]) -> Expr:
    for moves in layout.PACK_STEPS:
        word = T.Bind(layout.move_bits(T.Bind(word), moves, const))
    return word


def _pack_scales(low: Expr, high: Expr, K: Expr, scales: Buffer, t: Expr, g: Expr) -> None:
    """Pack the block scales of rows g and g + 8 of tile t, which share words."""
    low, high = T.Bind(low), T.Bind(high)
    whole, blocks = _blocks(K)
    _, _, lane, _ = layout.scale_index(g, 0)

    def at(c: Expr) -> Expr:
        return (t * blocks + c) * layout.LANES + lane

    with T.serial(whole) as c:
        first, second = (
            T.cast(load("uint16", 4, advance(row, c * SCALE_BYTES)), "uint32x4") for row in (low, high)
        )
        T.buffer_store(scales, first | second << T.Broadcast(T.uint32(16), 4), [T.ramp(at(c), 1, 4)])
    with T.If(whole < blocks), T.Then():
        groups = T.Bind(T.truncdiv(K, T.int64(layout.GROUP_SIZE)))
        with T.serial(T.int64(4)) as q:
            value = T.uint32(0)
            for byte in range(4):
                _, group = layout.scale_origin(T.int64(0), whole, q, byte)
                row = low if byte < 2 else high
                loaded = load("uint8", 1, advance(row, group))
                inside = T.if_then_else(group < groups, T.cast(loaded, "uint32"), T.uint32(0))
                value = value | inside << T.uint32(8 * byte)
            T.buffer_store(scales, value, [at(whole) + q])
