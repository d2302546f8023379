"""What CPU kernels say in LLVM: loads from addresses, stores past the caches, products that are not fused.

TIR's buffers cannot say the first: tensors follow one another in a file at any alignment, read-only, and the rows
of fused weights are spread over several. The helpers are a few lines of LLVM, inlined where they are called.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

from tvm.tirx import Expr
from tvm.tirx.script.builder import ir as T

from nvfp4_tvm.buffers import ALIGNMENT

_BITS = {"uint8": 8, "uint16": 16, "uint32": 32}


def _llvm_type(dtype: str, lanes: int) -> str:
    return f"<{lanes} x i{_BITS[dtype]}>" if lanes > 1 else f"i{_BITS[dtype]}"


def _name(what: str, dtype: str, lanes: int) -> str:
    return f"nvfp4_{what}_{dtype}x{lanes}"


#: A vector: dtype and lanes.
Vector = tuple[str, int]


def helpers(
    *, loads: Sequence[Vector], streams: Sequence[Vector] = (), rounded: Sequence[int] = ()
) -> AbstractContextManager:
    """Provide the helpers for vectors of the given dtypes and lanes inside of a ``with``.

    ``rounded`` are lanes of float32.
    """
    text = []
    for lanes in rounded:
        vector = f"<{lanes} x float>"
        text.append(f"""
declare {vector} @llvm.arithmetic.fence.v{lanes}f32({vector})
define {vector} @{_name("rounded", "float32", lanes)}({vector} %v) {{
  %r = call {vector} @llvm.arithmetic.fence.v{lanes}f32({vector} %v)
  ret {vector} %r
}}""")
    for dtype, lanes in loads:
        vector = _llvm_type(dtype, lanes)
        text.append(f"""
define {vector} @{_name("load", dtype, lanes)}(i64 %address) {{
  %p = inttoptr i64 %address to ptr
  %v = load {vector}, ptr %p, align 1
  ret {vector} %v
}}""")
    for dtype, lanes in streams:
        vector = _llvm_type(dtype, lanes)
        text.append(f"""
define void @{_name("stream", dtype, lanes)}(ptr %p, {vector} %v) {{
  store {vector} %v, ptr %p, align {ALIGNMENT}, !nontemporal !0
  ret void
}}""")
    text.append("""
define void @nvfp4_stream_end() {
  fence seq_cst
  ret void
}
!0 = !{i32 1}
""")
    return T.attr(0, "pragma_import_llvm", "".join(text))


def load(dtype: str, lanes: int, address: Expr) -> Expr:
    """Load a vector from an address (uint64)."""
    result = f"{dtype}x{lanes}" if lanes > 1 else dtype
    return T.call_extern(result, _name("load", dtype, lanes), address)


def stream(pointer: Expr, value: Expr) -> None:
    """Store a vector past the caches; `stream_end` comes before anyone else reads it."""
    dtype = value.ty.dtype
    T.evaluate(T.call_extern("void", _name("stream", f"uint{dtype.bits}", dtype.lanes), pointer, value))


def rounded(value: Expr) -> Expr:
    """Return a product or sum that is rounded before it is used: TVM simplifies, and lets LLVM fuse."""
    dtype = value.ty.dtype
    return T.call_extern(str(dtype), _name("rounded", "float32", dtype.lanes), value)


def stream_end() -> None:
    """Make what was streamed visible to other threads."""
    T.evaluate(T.call_extern("void", "nvfp4_stream_end"))


def advance(address: Expr, offset: Expr | int) -> Expr:
    """Return the address ``offset`` bytes further."""
    return address + T.cast(offset, "uint64")
