"""Run a CUDA kernel whose threads do not talk to each other on the CPU: its generated source, thread by thread.

The host function of the launch is the real one, with its checks and its grid; the kernel that it calls is the CUDA
source compiled by the C++ compiler, with a few words of CUDA explained to it.
"""

import ctypes
import itertools
import os
import re
import subprocess
import tempfile
from pathlib import Path

import tvm
import tvm_ffi

from nvfp4_tvm.codegen.launch import lower_launch, with_host

_PRELUDE = """
#include <cstdint>
#include <algorithm>
using std::min;
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(n)
typedef unsigned int uint; typedef unsigned char uchar;
static struct { int x; } threadIdx, blockIdx;
static unsigned __byte_perm(unsigned a, unsigned b, unsigned s) {
  uint64_t both = (uint64_t)b << 32 | a, r = 0;
  for (int i = 0; i < 4; ++i) r |= (both >> 8 * (s >> 4 * i & 7) & 255) << 8 * i;
  return r;
}
static int __shfl_sync(unsigned, int value, int, int) { return value; }
static unsigned lop3(unsigned a, unsigned b, unsigned c, int table) {
  unsigned r = 0;
  for (int i = 0; i < 8; ++i)
    if (table >> i & 1) r |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  return r;
}
"""
#: Functions that TVM generates for vectors, and what they do: load or store 2 or 4 words.
_VECTOR = re.compile(
    r"__forceinline__ __device__ void (tvm_builtin_ptx_(ld|st)_vec_\w*v(\d)_u32)\([^\n]*\n[^\n]*\n}"
)
_LOP3 = re.compile(
    r'asm\("lop3.b32 %0, %1, %2, %3, (\w+);" : "=r"\((\w+)\) : "r"\((.+?)\), "r"\((.+?)\), "r"\((.+?)\)\);'
)
#: What follows on TVM's headers.
_FIRST_OWN = re.compile(r"#ifndef NVFP4|__forceinline__ __device__ void tvm_")
_numbers = itertools.count()


def _vector(match):
    name, kind, lanes = match[1], match[2], int(match[3])
    words = [f"uint{'&' if kind == 'ld' else ''} w{i}" for i in range(lanes)]
    arguments = [*words, "const void* p"] if kind == "ld" else ["const void* p", *words]
    # Vectors must be aligned on a GPU
    lines = [f"if ((uintptr_t)p % {4 * lanes}) __builtin_trap();"]
    for i in range(lanes):
        word = f"((uint*)p)[{i}]"
        lines.append(f"w{i} = {word};" if kind == "ld" else f"{word} = w{i};")
    return f"static void {name}({', '.join(arguments)}) {{ {' '.join(lines)} }}"


def on_host(launch, target):
    """Return a function that calls a launch with NumPy arrays and returns all of them as they are afterwards."""
    name = f"on_host_{next(_numbers)}"
    target = with_host(target)
    lowered = lower_launch(launch, name, target)
    source = lowered.source[_FIRST_OWN.search(lowered.source).start() :]
    source = _LOP3.sub(r"\2 = lop3(\3, \4, \5, \1);", _VECTOR.sub(_vector, source))
    (signature,) = set(re.findall(rf"{name}_kernel\((.*?)\)", source))
    arguments = [argument.rsplit(" ", 1)[1] for argument in signature.split(", ")]
    loop = f"""
extern "C" void run({signature}, int64_t grid, int64_t block) {{
  for (blockIdx.x = 0; blockIdx.x < grid; ++blockIdx.x)
    for (threadIdx.x = 0; threadIdx.x < block; ++threadIdx.x) {name}_kernel({", ".join(arguments)});
}}
"""
    with tempfile.TemporaryDirectory() as folder:
        code, library = Path(folder) / "kernel.cc", Path(folder) / "kernel.so"
        code.write_text(_PRELUDE + source + loop)
        compiler = os.environ.get("CXX", "g++")
        subprocess.run([compiler, "-O1", "-w", "-shared", "-fPIC", "-o", library, code], check=True)
        run = ctypes.CDLL(str(library)).run
    pointers = signature.count("*")

    def kernel(*values):
        given = [value.value if isinstance(value, ctypes.c_void_p) else value for value in values]
        types = [ctypes.c_void_p] * pointers + [ctypes.c_int64] * (len(arguments) - pointers + 2)
        run(*(kind(value) for kind, value in zip(types, given[: len(arguments) + 2], strict=True)))

    tvm_ffi.register_global_func(f"{name}_kernel", kernel, override=True)
    with target:
        module = tvm.get_global_func("target.build.llvm")(lowered.host, target.host)
    return lambda *arrays: _call(module[name], arrays)


#: Of ``DLTensor::device`` in a tensor object: behind the object's header (24 bytes) and the data pointer.
_DEVICE_OFFSET = 24 + 8
_CPU, _CUDA = 1, 2
_SET_DEVICE = "__tvm_set_device"


def _call(function, arrays):
    """Call a host function for CUDA with NumPy arrays; return the arrays afterwards."""
    tensors = [tvm.runtime.tensor(array) for array in arrays]
    devices = [ctypes.c_int32.from_address(tensor.__chandle__() + _DEVICE_OFFSET) for tensor in tensors]
    assert all(device.value == _CPU for device in devices)
    set_device = tvm_ffi.get_global_func(_SET_DEVICE)
    tvm_ffi.register_global_func(_SET_DEVICE, lambda *_: None, override=True)
    try:
        for device in devices:
            device.value = _CUDA
        function(*tensors)
    finally:
        for device in devices:
            device.value = _CPU
        tvm_ffi.register_global_func(_SET_DEVICE, set_device, override=True)
    return [tensor.numpy() for tensor in tensors]
