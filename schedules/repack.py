"""The repack on the CPU: canonical rows, wherever they lie, into the packed layout at the speed of memory.

The kernel takes the address of each packed row's codes and scales: rows of mapped files, of several fused parts,
in any order; rows of the padding point at zeros. A row's 16 words of a 128-block lie together in the layout
(`layout.word_index`), so that packing is a permutation of bits inside vectors and a copy of 64-byte pieces.
Each row is read from its start to its end, which the processor prefetches, and the pieces are written past the
caches: written through them, every line would be read from memory first. That is two thirds more traffic, and
TVM has no such store, hence a few lines of LLVM.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm.script.ir_builder import IRBuilder
from tvm.tirx import Buffer, Expr, PrimFunc
from tvm.tirx.script.builder import ir as T

from nvfp4_tvm import layout
from nvfp4_tvm.schedules.cpu_common import ROW_WORDS, named

KERNEL = "nvfp4_cpu_repack"
#: Bytes of a row's codes and of its scales in a 128-block.
CODE_BYTES, SCALE_BYTES = layout.TILE_K // 2, layout.GROUPS_PER_TILE
#: What ``words`` and ``block_scales`` must be aligned to: streaming stores are of whole cache lines.
ALIGNMENT = 64

# Loads of rows at any alignment (in a file, tensors follow one another), and the store past the caches. The
# fence makes streamed data visible before the task is reported as done.
_LLVM = f"""
define <{ROW_WORDS} x i32> @nvfp4_load_codes(i64 %address) {{
  %p = inttoptr i64 %address to ptr
  %v = load <{ROW_WORDS} x i32>, ptr %p, align 1
  ret <{ROW_WORDS} x i32> %v
}}
define <4 x i16> @nvfp4_load_scales(i64 %address) {{
  %p = inttoptr i64 %address to ptr
  %v = load <4 x i16>, ptr %p, align 1
  ret <4 x i16> %v
}}
define i32 @nvfp4_load_word(i64 %address) {{
  %p = inttoptr i64 %address to ptr
  %v = load i32, ptr %p, align 1
  ret i32 %v
}}
define i8 @nvfp4_load_byte(i64 %address) {{
  %p = inttoptr i64 %address to ptr
  %v = load i8, ptr %p, align 1
  ret i8 %v
}}
define void @nvfp4_stream(ptr %p, <{ROW_WORDS} x i32> %v) {{
  store <{ROW_WORDS} x i32> %v, ptr %p, align {ALIGNMENT}, !nontemporal !0
  ret void
}}
define void @nvfp4_stream_end() {{
  fence seq_cst
  ret void
}}
!0 = !{{i32 1}}
"""


def cpu_repack() -> PrimFunc:
    """Return ``f(code_rows uint64[R], scale_rows uint64[R], K, words, block_scales)`` for llvm targets.

    R is a multiple of 16, the packed rows; the addresses are of K/2 bytes of codes and K/16 of scales, K a
    multiple of 16. ``words`` and ``block_scales`` are flat, aligned to `ALIGNMENT` bytes.
    """
    with IRBuilder() as builder, T.prim_func():
        T.func_name(KERNEL)
        T.func_attr({"global_symbol": KERNEL, "tirx.is_scheduled": 1, "tirx.noalias": True})
        rows, sizes = T.int64(), (T.int64(), T.int64())
        code_rows = _argument("code_rows", rows, "uint64")
        scale_rows = _argument("scale_rows", rows, "uint64")
        K = named("K", T.arg("K", T.int64()))
        words, block_scales = (
            _argument(name, size, "uint32")
            for name, size in zip(("words", "block_scales"), sizes, strict=True)
        )
        with (
            T.attr(0, "pragma_import_llvm", _LLVM),
            T.parallel(T.truncdiv(rows, T.int64(layout.TILE_N))) as t,
        ):
            with T.serial(T.int64(layout.TILE_N)) as n:
                _pack_codes(code_rows[t * layout.TILE_N + n], K, words, t, n)
            with T.serial(T.int64(layout.TILE_N // 2)) as g:
                low = t * layout.TILE_N + g
                _pack_scales(scale_rows[low], scale_rows[low + layout.TILE_N // 2], K, block_scales, t, g)
            T.evaluate(T.call_extern("void", "nvfp4_stream_end"))
    return builder.get()


def _argument(name: str, size: Expr, dtype: str) -> Buffer:
    return named(name, T.match_buffer(T.arg(f"{name}_handle", T.handle()), (size,), dtype))


def _u64(value: Expr | int) -> Expr:
    return T.cast(value, "uint64")


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
        canonical = T.call_extern(f"uint32x{ROW_WORDS}", "nvfp4_load_codes", row + _u64(c * CODE_BYTES))
        packed = _permuted(canonical, lambda value: T.Broadcast(T.uint32(value), ROW_WORDS))
        T.evaluate(T.call_extern("void", "nvfp4_stream", T.address_of(words[at(c)]), packed))
    with T.If(whole < blocks), T.Then():
        left = T.Bind(T.truncdiv(K - whole * layout.TILE_K, T.int64(layout.CODES_PER_WORD)))
        with T.serial(left) as w:
            canonical = T.call_extern("uint32", "nvfp4_load_word", row + _u64(whole * CODE_BYTES + w * 4))
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
            T.cast(T.call_extern("uint16x4", "nvfp4_load_scales", row + _u64(c * SCALE_BYTES)), "uint32x4")
            for row in (low, high)
        )
        T.buffer_store(scales, first | second << T.Broadcast(T.uint32(16), 4), [T.ramp(at(c), 1, 4)])
    with T.If(whole < blocks), T.Then():
        groups = T.Bind(T.truncdiv(K, T.int64(layout.GROUP_SIZE)))
        with T.serial(T.int64(4)) as q:
            value = T.uint32(0)
            for byte in range(4):
                _, group = layout.scale_origin(T.int64(0), whole, q, byte)
                row = low if byte < 2 else high
                loaded = T.call_extern("uint8", "nvfp4_load_byte", row + _u64(group))
                inside = T.if_then_else(group < groups, T.cast(loaded, "uint32"), T.uint32(0))
                value = value | inside << T.uint32(8 * byte)
            T.buffer_store(scales, value, [at(whole) + q])
