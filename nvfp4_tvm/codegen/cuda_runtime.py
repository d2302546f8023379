"""TVM's CUDA runtime: loaded for real where there is a driver, for building only where there is none.

TVM keeps the compiler and the module class apart: the code generator is in libtvm_compiler, the class that
stores an image is in libtvm_runtime_cuda, which links the driver (libcuda.so.1) and the CUDA 13 runtime.
Where these do not load, ``import tvm`` goes on without it, and a build yields modules with CUDA source
inside. Whoever loads such a library compiles it then, through Python.

So on a machine without a driver the runtime is loaded against stand-ins for both libraries, made at that
moment with the C compiler that exporting a library needs anyway. Of the ways to do this:

- Stand-ins with the real names in front of everything: whatever else in the process asks for libcuda.so.1
  later (PyTorch, Triton, NVML) then gets ours. Rejected.
- Rewriting what ``export_library`` wrote: the modules are serialized inside an object file by C++, and an
  in-memory module would still hold source and could not run or be checked. Rejected.
- Chosen: a private copy of libtvm_runtime_cuda.so whose two dependencies are renamed (same length, in
  place, in its string table), and stand-ins that bear the new names. Nothing else in the process can meet
  them. They say "no device" to every call, so ``tvm.cuda(0).exist`` stays False and running on ``cuda``
  fails with an error.

Where there is a driver but no libcudart.so.13 on the loader's path, the one of the PyPI package
``nvidia-cuda-runtime`` (which PyTorch brings as well) is loaded first, and TVM's runtime then works.
"""

from __future__ import annotations

import ctypes
import logging
import sys
import tempfile
from pathlib import Path

import tvm  # noqa: F401  loads libtvm_runtime, which the CUDA runtime links
import tvm_ffi
from tvm.base import _LOADED_LIBS
from tvm.libinfo import package_lib_paths
from tvm.support import cc

from nvfp4_tvm.codegen.toolkit import nvidia_roots
from nvfp4_tvm.errors import TargetError

_LOG = logging.getLogger(__name__)

FACTORY = "ffi.Module.create.cuda"
"""Global function that libtvm_runtime_cuda registers and that the code generator asks for."""

_LIBRARY = "libtvm_runtime_cuda.so"

# New names must have the length of the old ones: the string table is edited in place
_STUB_NAME, _EMPTY_NAME = "libnvf4.so.1", "libnvf4_rt.so.1"
_RENAMED = {"libcuda.so.1": _STUB_NAME, "libcudart.so.13": _EMPTY_NAME}

# What libtvm_runtime_cuda.so of apache-tvm 0.27.0.post1 imports (nm -D --undefined-only). A missing one
# shows at once: the library is loaded with all symbols bound.
_DRIVER = [
    "cuDeviceGetName",
    "cuFuncSetAttribute",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuLaunchKernelEx",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuTensorMapEncodeTiled",
]
_RUNTIME = [
    "cudaDeviceGetAttribute",
    "cudaEventCreate",
    "cudaEventDestroy",
    "cudaEventElapsedTime",
    "cudaEventRecord",
    "cudaEventSynchronize",
    "cudaFree",
    "cudaFreeHost",
    "cudaGetDevice",
    "cudaGetDeviceCount",
    "cudaGetDeviceProperties",
    "cudaGetErrorName",
    "cudaGetErrorString",
    "cudaGetLastError",
    "cudaGraphDestroy",
    "cudaGraphExecDestroy",
    "cudaGraphInstantiate",
    "cudaGraphLaunch",
    "cudaMalloc",
    "cudaMallocHost",
    "cudaMemGetInfo",
    "cudaMemcpyAsync",
    "cudaMemcpyPeerAsync",
    "cudaPeekAtLastError",
    "cudaSetDevice",
    "cudaStreamBeginCapture",
    "cudaStreamCreate",
    "cudaStreamCreateWithFlags",
    "cudaStreamDestroy",
    "cudaStreamEndCapture",
    "cudaStreamSynchronize",
    "cudaStreamWaitEvent",
]

_TEXT = "no CUDA driver on this machine: it compiles for GPUs but cannot run on one"

# 100 is cudaErrorNoDevice and CUDA_ERROR_NO_DEVICE
_STUB = """
#ifdef __cplusplus
extern "C" {{
#endif
{functions}
#ifdef __cplusplus
}}
#endif
"""
_RETURNS_TEXT = 'const char* {name}(int error) {{ (void)error; return "{text}"; }}'
_STORES_TEXT = 'int {name}(int error, const char** text) {{ (void)error; *text = "{text}"; return 0; }}'
_COUNTS_NONE = "int {name}(int* count) {{ *count = 0; return 100; }}"
_FAILS = "int {name}(void) {{ return 100; }}"
_SPECIAL = {
    "cudaGetErrorName": _RETURNS_TEXT,
    "cudaGetErrorString": _RETURNS_TEXT,
    "cuGetErrorName": _STORES_TEXT,
    "cuGetErrorString": _STORES_TEXT,
    "cudaGetDeviceCount": _COUNTS_NONE,
}

_stub_loaded = False
_stub_handles: list[ctypes.CDLL] = []


def have_driver() -> bool:
    """Whether NVIDIA's driver library loads in this process."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def runs_on_stub() -> bool:
    """Whether TVM's CUDA runtime in this process is the one that only builds."""
    return _stub_loaded


def load_cuda_runtime() -> bool:
    """Load TVM's real CUDA runtime if this machine can run it.

    ``import tvm`` has tried that already; this also finds the CUDA runtime library of PyPI packages. Once
    `ensure_cuda_codegen` has loaded the runtime for building, a process cannot change over.

    Returns
    -------
    bool
        True when CUDA calls of TVM reach the driver.
    """
    if tvm_ffi.get_global_func(FACTORY, allow_missing=True) is not None:
        return not _stub_loaded
    if not have_driver():
        return False
    for name in [str(root / "cu13" / "lib" / "libcudart.so.13") for root in nvidia_roots()]:
        try:
            ctypes.CDLL(name, ctypes.RTLD_GLOBAL)
            break
        except OSError:
            continue
    try:
        _LOADED_LIBS["tvm_runtime_cuda"] = ctypes.CDLL(str(_library_path()))
    except OSError as error:
        _LOG.warning(
            "this machine has an NVIDIA driver, but TVM's CUDA runtime does not load (%s): "
            "run pip install 'nvidia-cuda-runtime>=13,<14'",
            error,
        )
        return False
    return True


def ensure_cuda_codegen() -> None:
    """Make builds for CUDA produce modules that store compiled images.

    Raises
    ------
    TargetError
        When TVM's CUDA runtime cannot be loaded in any way: not Linux, no C compiler, or another build of TVM
        than the pinned one.
    """
    if tvm_ffi.get_global_func(FACTORY, allow_missing=True) is None and not load_cuda_runtime():
        _load_on_stub()


def _library_path() -> Path:
    for folder in package_lib_paths():
        if (folder / _LIBRARY).is_file():
            return folder / _LIBRARY
    raise TargetError(f"this installation of TVM has no {_LIBRARY}: install apache-tvm's wheel for Linux")


def _stub_source(names: list[str]) -> str:
    functions = "\n".join(_SPECIAL.get(name, _FAILS).format(name=name, text=_TEXT) for name in names)
    return _STUB.format(functions=functions)


def _renamed_library() -> bytes:
    image = _library_path().read_bytes()
    for old, new in _RENAMED.items():
        # The string table separates names by zero bytes, so this matches the whole name only
        entry, replacement = (b"\0" + name.encode() + b"\0" for name in (old, new))
        assert len(entry) == len(replacement), (old, new)
        if image.count(entry) != 1:
            raise TargetError(
                f"{_LIBRARY} names {old} {image.count(entry)} times, expected once: "
                "install the pinned version of apache-tvm"
            )
        image = image.replace(entry, replacement)
    return image


def _load_on_stub() -> None:
    global _stub_loaded
    if not sys.platform.startswith("linux"):
        raise TargetError(
            f"compiling for CUDA without a driver works on Linux only, this is {sys.platform}: "
            "compile on Linux or for llvm"
        )
    compiler = cc.get_cc()
    if compiler is None:
        raise TargetError(
            "compiling for CUDA without a driver needs a C compiler: install gcc or clang, or set CC to one"
        )
    with tempfile.TemporaryDirectory(prefix="nvfp4_tvm_") as name:
        folder = Path(name)
        # libcudart's symbols are versioned, ours are not. glibc takes an unversioned symbol from any
        # library but the one the version is bound to by name, so that one stays empty and the other holds
        # all functions.
        for soname, symbols in ((_STUB_NAME, _DRIVER + _RUNTIME), (_EMPTY_NAME, [])):
            source = folder / f"{soname}.c"
            source.write_text(_stub_source(symbols))
            try:
                cc.create_shared(
                    str(folder / soname), [str(source)], options=[f"-Wl,-soname,{soname}"], cc=compiler
                )
            except (RuntimeError, OSError) as error:
                first = " ".join(str(error).split())[:200]
                raise TargetError(
                    f"compiling for CUDA without a driver needs a C compiler, and {compiler} fails: {first}"
                ) from error
            # The loader resolves the copy's dependencies by the names of what is already loaded
            _stub_handles.append(ctypes.CDLL(str(folder / soname)))
        copy = folder / _LIBRARY
        copy.write_bytes(_renamed_library())
        try:
            _LOADED_LIBS["tvm_runtime_cuda"] = ctypes.CDLL(str(copy))
        except OSError as error:
            raise TargetError(
                f"{_LIBRARY} does not load without a driver ({error}): install the pinned apache-tvm"
            ) from error
    _stub_loaded = True
    _LOG.info("no NVIDIA driver here: CUDA modules are compiled but cannot run in this process")
