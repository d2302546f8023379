"""CUDA source to cubin and PTX with NVRTC 12.9, no CUDA installation, driver or GPU needed.

TVM's own callback (``tvm.support.nvcc``) differs in three ways that matter here: it passes
``--use_fast_math``, which flushes float32 subnormals to zero and loosens division; it includes libcu++,
which takes ten times as long to parse as a kernel takes to compile (1.15 s against 0.09 s for a vector
addition); and it needs a CUDA toolkit.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from nvfp4_tvm.codegen.toolkit import cuda_include, extra_include, load_library

# What TVM's generated source takes from libcu++ under NVRTC: fixed-width integers and eight type traits
# (tvm/backend/cuda/codegen/header.py). Found by name before any include folder is searched.
_CSTDINT = """#pragma once
namespace cuda { namespace std {
using int8_t = signed char;
using uint8_t = unsigned char;
using int16_t = short;
using uint16_t = unsigned short;
using int32_t = int;
using uint32_t = unsigned int;
using int64_t = long long;
using uint64_t = unsigned long long;
} }
"""

_TYPE_TRAITS = """#pragma once
namespace cuda { namespace std {
template <class T, T v> struct integral_constant { static constexpr T value = v; };
using true_type = integral_constant<bool, true>;
using false_type = integral_constant<bool, false>;
template <class T> struct remove_cv { using type = T; };
template <class T> struct remove_cv<const T> { using type = T; };
template <class T> struct remove_cv<volatile T> { using type = T; };
template <class T> struct remove_cv<const volatile T> { using type = T; };
template <class A, class B> struct is_same : false_type {};
template <class A> struct is_same<A, A> : true_type {};
template <class A, class B> inline constexpr bool is_same_v = is_same<A, B>::value;
template <class T> struct __integral : false_type {};
template <> struct __integral<bool> : true_type {};
template <> struct __integral<char> : true_type {};
template <> struct __integral<wchar_t> : true_type {};
template <> struct __integral<char16_t> : true_type {};
template <> struct __integral<char32_t> : true_type {};
template <> struct __integral<signed char> : true_type {};
template <> struct __integral<unsigned char> : true_type {};
template <> struct __integral<short> : true_type {};
template <> struct __integral<unsigned short> : true_type {};
template <> struct __integral<int> : true_type {};
template <> struct __integral<unsigned int> : true_type {};
template <> struct __integral<long> : true_type {};
template <> struct __integral<unsigned long> : true_type {};
template <> struct __integral<long long> : true_type {};
template <> struct __integral<unsigned long long> : true_type {};
template <class T> struct is_integral : __integral<typename remove_cv<T>::type> {};
template <class T> struct __floating : false_type {};
template <> struct __floating<float> : true_type {};
template <> struct __floating<double> : true_type {};
template <class T> struct is_floating_point : __floating<typename remove_cv<T>::type> {};
template <class T, bool arithmetic> struct __signed : false_type {};
template <class T> struct __signed<T, true> : integral_constant<bool, (T(-1) < T(0))> {};
template <class T> struct is_signed
    : __signed<typename remove_cv<T>::type, is_integral<T>::value || is_floating_point<T>::value> {};
template <class T, bool arithmetic> struct __unsigned : false_type {};
template <class T> struct __unsigned<T, true> : integral_constant<bool, (T(0) < T(-1))> {};
template <class T> struct is_unsigned
    : __unsigned<typename remove_cv<T>::type, is_integral<T>::value> {};
template <bool c, class T = void> struct enable_if {};
template <class T> struct enable_if<true, T> { using type = T; };
template <bool c, class A, class B> struct conditional { using type = A; };
template <class A, class B> struct conditional<false, A, B> { using type = B; };
} }
"""

_OWN_HEADERS = {"cuda/std/cstdint": _CSTDINT, "cuda/std/type_traits": _TYPE_TRAITS}

# NVRTC has no <math.h>, where TVM's code expects INFINITY; 0x7f800000 is +inf in IEEE 754 binary32
_PREAMBLE = """#ifndef INFINITY
#define INFINITY (__int_as_float(0x7f800000))
#endif
"""

# TMA kernels take this by value, so the type must be complete; size and alignment are cuda.h's
_TENSOR_MAP = """struct alignas(64) CUtensorMap_st { unsigned long long opaque[16]; };
typedef struct CUtensorMap_st CUtensorMap;
"""

_INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.MULTILINE)


class CompileError(RuntimeError):
    """Generated CUDA source did not compile: a defect of a kernel, not of the user's input.

    Attributes
    ----------
    arch : str
        Architecture it was compiled for.
    log : str
        The whole compiler log.
    source : str
        The source, for the report of the defect.
    """

    def __init__(self, arch: str, log: str, source: str) -> None:
        lines = [line.strip() for line in log.splitlines()]
        first = next((line for line in lines if "error" in line), lines[0] if lines else "no log")
        super().__init__(f"generated CUDA source does not compile for {arch}: {first}")
        self.arch, self.log, self.source = arch, log, source


@dataclass(frozen=True)
class Compiled:
    """Output of one compilation.

    Attributes
    ----------
    arch : str
        As asked for: ``sm_89`` or ``sm_90a``.
    cubin : bytes
        Machine code, an ELF file.
    ptx : bytes
        PTX for the virtual architecture of the same number, ending in a zero byte.
    log : str
        Warnings, and what ptxas reports of every kernel.
    """

    arch: str
    cubin: bytes
    ptx: bytes
    log: str


@cache
def _nvrtc() -> ctypes.CDLL:
    library = load_library("libnvrtc.so.12", "cuda_nvrtc")
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    return library


def _check(result: int, call: str) -> None:
    if result:
        raise RuntimeError(f"{call} failed: {_nvrtc().nvrtcGetErrorString(result).decode()}")


def _read(program: ctypes.c_void_p, what: str) -> bytes:
    library = _nvrtc()
    size = ctypes.c_size_t()
    _check(getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)), f"nvrtcGet{what}Size")
    buffer = ctypes.create_string_buffer(size.value)
    _check(getattr(library, f"nvrtcGet{what}")(program, buffer), f"nvrtcGet{what}")
    return buffer.raw


def _environment(source: str) -> tuple[str, Mapping[str, str], list[str]]:
    """Source with its preamble, the headers given by text, and the include folders."""
    included = set(_INCLUDE.findall(source))
    folders = [str(cuda_include())]
    headers: Mapping[str, str] = _OWN_HEADERS
    cccl = sorted(name for name in included if name.split("/")[0] in ("cuda", "cub") and name not in headers)
    if cccl:
        # The real libcu++ needs all of its own headers, ours would clash with them
        headers = {}
        folders.append(str(extra_include(cccl[0], {"cuda_cccl/include": "nvidia-cuda-cccl-cu12"})))
    if "mma.h" in included:
        folders.append(str(extra_include("crt/mma.h", {"cuda_nvcc/include": "nvidia-cuda-nvcc-cu12"})))
    preamble = _PREAMBLE
    if "CUtensorMap" in source:
        preamble += _TENSOR_MAP
    # Host-only: declares the driver's functions
    return preamble + re.sub(r"^\s*#\s*include\s*<cuda\.h>", "", source, flags=re.MULTILINE), headers, folders


def compile_source(source: str, arch: str, options: Sequence[str] = ()) -> Compiled:
    """Compile CUDA C++ to machine code and PTX.

    Parameters
    ----------
    source : str
        Device code as TVM's CUDA code generator writes it.
    arch : str
        Real architecture, ``sm_XY`` or ``sm_XYa``.
    options : sequence of str
        More NVRTC options, such as ``--ptxas-options=--register-usage-level=10`` or ``-lineinfo``.

    Returns
    -------
    Compiled

    Raises
    ------
    CompileError
        When the source is wrong; the log is in the exception.
    TargetError
        When NVRTC, or a header the source includes, is not installed.
    """
    library = _nvrtc()
    text, headers, folders = _environment(source)
    program = ctypes.c_void_p()
    count = len(headers)
    bodies = (ctypes.c_char_p * count)(*[body.encode() for body in headers.values()])
    names = (ctypes.c_char_p * count)(*[name.encode() for name in headers])
    _check(
        library.nvrtcCreateProgram(
            ctypes.byref(program), text.encode(), b"nvfp4_tvm_kernels.cu", count, bodies, names
        ),
        "nvrtcCreateProgram",
    )
    flags = [
        f"--gpu-architecture={arch}",
        "--std=c++17",
        "-default-device",
        "--device-int128",
        # Registers, spills and shared memory of each kernel in the log
        "--ptxas-options=-v",
        # vector_types.h gates deprecation warnings with these, and NVRTC's own copy does not define them
        "-D__NV_SILENCE_DEPRECATION_BEGIN=",
        "-D__NV_SILENCE_DEPRECATION_END=",
        "-D__NV_SILENCE_HOST_DEPRECATION_BEGIN=",
        "-D__NV_SILENCE_HOST_DEPRECATION_END=",
        *[f"--include-path={folder}" for folder in folders],
        *options,
    ]
    try:
        result = library.nvrtcCompileProgram(
            program, len(flags), (ctypes.c_char_p * len(flags))(*[flag.encode() for flag in flags])
        )
        log = _read(program, "ProgramLog").rstrip(b"\0").decode(errors="replace")
        if result:
            raise CompileError(arch, log or _nvrtc().nvrtcGetErrorString(result).decode(), source)
        return Compiled(arch, _read(program, "CUBIN"), _read(program, "PTX"), log)
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))
