"""Compiled kernels on disk: what NVRTC made of a source is kept, and read back instead of compiling again.

The folder is that of the user's caches (:func:`platformdirs.user_cache_dir`); the environment variable
``NVFP4_TVM_CACHE`` names another one, or turns the cache off with ``0``. An entry's name is the digest of
everything the machine code depends on; its content begins with its own digest, so that a damaged file is seen,
reported and compiled again. Entries are written aside and renamed: processes may share the folder.
"""

from __future__ import annotations

import ctypes
import hashlib
import inspect
import json
import logging
import os
import tempfile
from dataclasses import asdict
from functools import cache
from pathlib import Path

import platformdirs

from nvfp4_tvm.codegen import machine_code, nvrtc
from nvfp4_tvm.codegen.machine_code import MachineCode, ResourceUsage, compile_machine_code
from nvfp4_tvm.codegen.toolkit import load_library

logger = logging.getLogger(__name__)

VARIABLE = "NVFP4_TVM_CACHE"
#: Changes when the content of entries does.
FORMAT = 1
_DIGEST = hashlib.sha256


def cache_folder() -> Path | None:
    """Return the folder of compiled kernels, or None if the cache is turned off."""
    value = os.environ.get(VARIABLE)
    if value == "0":
        return None
    return (
        Path(value) if value else Path(platformdirs.user_cache_dir("nvfp4_tvm", appauthor=False)) / "kernels"
    )


@cache
def _toolchain() -> str:
    major, minor = ctypes.c_int(), ctypes.c_int()
    load_library("libnvrtc.so.12", "cuda_nvrtc").nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    # The options and the preamble of a compilation are text of these two modules
    code = "".join(inspect.getsource(module) for module in (machine_code, nvrtc))
    return f"{FORMAT} nvrtc {major.value}.{minor.value} {_DIGEST(code.encode()).hexdigest()}"


def entry_name(source: str, arch: str) -> str:
    """Return the file name of the entry for ``source`` compiled for ``arch`` with the installed toolchain."""
    return _DIGEST("\0".join((_toolchain(), arch, source)).encode()).hexdigest() + ".bin"


def compile_cached(source: str, arch: str) -> MachineCode:
    """Compile as :func:`~nvfp4_tvm.codegen.machine_code.compile_machine_code`, or take the result from disk.

    Code for an architecture-specific feature set (sm_90a) gets no PTX: no other GPU could translate it.

    Raises
    ------
    CompileError, TargetError
        As ``compile_machine_code``. A cache that cannot be read or written is a warning, not an error.
    """
    folder = cache_folder()
    ptx = not arch.endswith("a")
    if folder is None:
        return compile_machine_code(source, arch, ptx)
    path = folder / entry_name(source, arch)
    found = _read(path, source)
    if found is None:
        found = compile_machine_code(source, arch, ptx)
        _write(path, found)
    return found


def _read(path: Path, source: str) -> MachineCode | None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        logger.warning("%s: cannot be read (%s), compiling the kernel again", path, error)
        return None
    size = _DIGEST().digest_size
    if len(data) < size or _DIGEST(data[size:]).digest() != data[:size]:
        logger.warning("%s: damaged entry (its digest does not match), compiling the kernel again", path)
        return None
    header, _, fatbin = data[size:].partition(b"\n")
    fields = json.loads(header)
    usage = {kernel: ResourceUsage(**values) for kernel, values in fields["usage"].items()}
    return MachineCode(fields["arch"], fatbin, fields["ptx_arch"], usage, source)


def _write(path: Path, code: MachineCode) -> None:
    usage = {kernel: asdict(values) for kernel, values in code.usage.items()}
    header = json.dumps({"arch": code.arch, "ptx_arch": code.ptx_arch, "usage": usage})
    body = header.encode() + b"\n" + code.fatbin
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            file.write(_DIGEST(body).digest() + body)
        os.replace(file.name, path)
    except OSError as error:
        logger.warning("%s: cannot be written (%s); the kernel will be compiled again next time", path, error)
