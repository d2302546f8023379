"""Intel AMX: eight tile registers of 16 rows of 64 bytes, multiplied as bfloat16 pairs into float32.

Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18 (tiles, TILECFG) and
volume 2 (LDTILECFG, TILELOADD, TDPBF16PS). Products of bfloat16 numbers are exact in float32; subnormal
inputs and results read as zero.
"""

from __future__ import annotations

import struct

from tvm.target import Target
from tvm.target.codegen import target_has_features
from tvm.tirx import Buffer, Expr
from tvm.tirx.script.builder import ir as T

TILES = 8
TILE_ROWS = 16
TILE_ROW_BYTES = 64
FEATURES = ("amx-tile", "amx-bf16")
#: Dtype of all memory that tiles touch, whatever its bits mean. StorageRewrite lets buffers of several dtypes
#: share memory, which tvm_access_ptr does not allow; the other CPU kernels of a dispatch have float32 scratch.
SCRATCH = "float32"

# TILECFG: byte 0 is the palette; bytes a row (16 bits each) start at byte 16, rows (8 bits each) at byte 48.
_CONFIG_BYTES, _PALETTE, _ROW_BYTES_AT, _ROWS_AT = 64, 1, 16, 48
# Linux, Documentation/arch/x86/xstate.rst: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) asks for the
# tile registers, for the whole process; 158 is arch_prctl's number on x86-64.
_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA = 158, 0x1023, 18


def has_amx(target: Target) -> bool:
    """Return whether kernels for ``target`` may use AMX: its features say so, and it runs Linux on x86-64."""
    triple = str(target.attrs.get("mtriple", ""))
    if not triple.startswith("x86_64") or "linux" not in triple:
        return False
    return bool(target_has_features(list(FEATURES), target))


def request_permission() -> None:
    """Ask Linux for the tile registers; an error is raised where it does not grant them."""
    numbers = (_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA)
    status = T.Bind(T.call_extern("int64", "syscall", *map(T.int64, numbers)))
    with T.Assert(status == 0, "Linux does not grant AMX here: compile for a target with -mattr=-amx-tile"):
        pass


def configure(config: Buffer) -> None:
    """Set all tiles of this thread to full size; ``config`` is a scratch of 16 elements."""
    image = bytearray(_CONFIG_BYTES)
    image[0] = _PALETTE
    for tile in range(TILES):
        image[_ROW_BYTES_AT + 2 * tile] = TILE_ROW_BYTES
        image[_ROWS_AT + tile] = TILE_ROWS
    for i, (word,) in enumerate(struct.iter_unpack("<f", image)):
        T.buffer_store(config, T.float32(word), [i])
    _call("ldtilecfg", _pointer(config, (0,)))


def release() -> None:
    """Give the tiles back, so that switching threads does not save them."""
    _call("tilerelease")


def zero(tile: int) -> None:
    """Set a tile to zero."""
    _call("tilezero", T.int8(tile))


def load_tile(tile: int, source: Buffer, *index: Expr | int) -> None:
    """Load a tile from 1024 consecutive bytes that start at the element ``index``."""
    _call("tileloadd64", T.int8(tile), _pointer(source, index), T.int64(TILE_ROW_BYTES))


def store_tile(tile: int, destination: Buffer, *index: Expr | int) -> None:
    """Store a tile to 1024 consecutive bytes that start at the element ``index``."""
    _call("tilestored64", T.int8(tile), _pointer(destination, index), T.int64(TILE_ROW_BYTES))


def multiply(c: int, a: int, b: int) -> None:
    """``c[i, j] += sum_k a[i, 2k] * b[k, 2j] + a[i, 2k + 1] * b[k, 2j + 1]``, a and b bfloat16, c float32."""
    _call("tdpbf16ps", T.int8(c), T.int8(a), T.int8(b))


def _call(name: str, *args: Expr) -> None:
    T.evaluate(T.call_llvm_intrin("void", f"llvm.x86.{name}", *args))


def _pointer(buffer: Buffer, index: tuple[Expr | int, ...]) -> Expr:
    # Not T.address_of: CompactBufferAllocation takes that for an access of one element and shrinks the buffer.
    assert buffer.dtype == SCRATCH
    return buffer.access_ptr("rw", offset=buffer.offset_of(list(index))[0])
