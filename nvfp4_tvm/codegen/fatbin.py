"""One CUDA image holding machine code and PTX, made with libnvfatbin 12.9.

``cuModuleLoadData`` accepts a fatbin wherever it accepts a cubin: the driver picks the machine code that
fits the GPU, or translates the PTX when none does (CUDA Driver API, "Module Management"). The C interface
is documented in "nvFatbin" of the CUDA documentation.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from functools import cache

from nvfp4_tvm.codegen.toolkit import load_library

FATBIN_MAGIC = (0xBA55ED50).to_bytes(4, "little")
"""First bytes of every fatbin that nvcc and nvFatbin write."""


@cache
def _nvfatbin() -> ctypes.CDLL:
    library = load_library("libnvfatbin.so.12", "nvfatbin")
    library.nvFatbinGetErrorString.restype = ctypes.c_char_p
    return library


def _check(result: int, call: str) -> None:
    if result:
        raise RuntimeError(f"{call} failed: {_nvfatbin().nvFatbinGetErrorString(result).decode()}")


def make_fatbin(cubins: Sequence[tuple[str, bytes]], ptx: Sequence[tuple[str, bytes]] = ()) -> bytes:
    """Join images into one fatbin.

    Parameters
    ----------
    cubins : sequence of (str, bytes)
        Architecture (``sm_89``, ``sm_90a``) and ELF image.
    ptx : sequence of (str, bytes)
        Architecture and PTX text ending in a zero byte.

    Returns
    -------
    bytes

    Raises
    ------
    RuntimeError
        When nvFatbin refuses an image, for instance one of another architecture than named.
    TargetError
        When libnvfatbin is not installed.
    """
    library = _nvfatbin()
    handle = ctypes.c_void_p()
    options = (ctypes.c_char_p * 2)(b"-64", b"-host=linux")
    _check(library.nvFatbinCreate(ctypes.byref(handle), options, ctypes.c_size_t(2)), "nvFatbinCreate")
    try:
        for arch, image in cubins:
            _check(
                library.nvFatbinAddCubin(
                    handle, image, ctypes.c_size_t(len(image)), arch.removeprefix("sm_").encode(), b"kernels"
                ),
                f"nvFatbinAddCubin({arch})",
            )
        for arch, image in ptx:
            _check(
                library.nvFatbinAddPTX(
                    handle,
                    image,
                    ctypes.c_size_t(len(image)),
                    arch.removeprefix("sm_").encode(),
                    b"kernels",
                    b"",
                ),
                f"nvFatbinAddPTX({arch})",
            )
        size = ctypes.c_size_t()
        _check(library.nvFatbinSize(handle, ctypes.byref(size)), "nvFatbinSize")
        buffer = ctypes.create_string_buffer(size.value)
        _check(library.nvFatbinGet(handle, buffer), "nvFatbinGet")
        return buffer.raw
    finally:
        library.nvFatbinDestroy(ctypes.byref(handle))


# Magic, version, size of this header, bytes that follow it: as in CUDA's "fatBinaryHeader"
_HEADER = struct.Struct("<4sHHQ")


def extract_fatbins(data: bytes) -> list[bytes]:
    """Find the fatbins inside other bytes, for instance an exported library.

    Parameters
    ----------
    data : bytes
        Contents of a file, or a fatbin itself.

    Returns
    -------
    list of bytes
        In the order in which they occur; empty when there are none.
    """
    found: list[bytes] = []
    at = data.find(FATBIN_MAGIC)
    while at >= 0:
        end = at + len(FATBIN_MAGIC)
        if at + _HEADER.size <= len(data):
            _, version, header, payload = _HEADER.unpack_from(data, at)
            # The four bytes of the magic alone can occur by chance
            if version == 1 and header == _HEADER.size and payload and at + header + payload <= len(data):
                end = at + header + payload
                found.append(data[at:end])
        at = data.find(FATBIN_MAGIC, end)
    return found
