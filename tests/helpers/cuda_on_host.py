"""Run a CUDA kernel on the CPU: its generated source, compiled as C++ with a few words of CUDA explained.

The host function of the launch is the real one, with its checks and its grid. Where threads of a block talk to
each other, by barriers or ``mma.sync``, each is a thread of the CPU; else they run one after the other.
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
static thread_local struct { int x; } threadIdx;
static struct { int x; } blockIdx;
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
#: For blocks whose threads talk. Which element of a matrix a lane holds: PTX ISA, "Matrix Fragments for
#: mma.m16n8k16 with floating point type"; sums of products are in double, so nothing is lost before the last.
_TOGETHER = """
#include <cmath>
#include <cstring>
#include <barrier>
#include <memory>
#include <thread>
#include <vector>
typedef uint16_t half;
struct nv_bfloat16 {
  uint16_t bits;
  nv_bfloat16(float value) {
    uint32_t v;
    std::memcpy(&v, &value, 4);
    bits = (v + 0x7FFF + (v >> 16 & 1)) >> 16;
  }
};
static std::unique_ptr<std::barrier<>> block_barrier;
static std::vector<std::unique_ptr<std::barrier<>>> warp_barriers;
static std::vector<std::vector<uint32_t>> given;
static void __syncthreads() { block_barrier->arrive_and_wait(); }
static double bf16(uint16_t bits) {
  uint32_t v = (uint32_t)bits << 16;
  float value;
  std::memcpy(&value, &v, 4);
  return value;
}
static double f16(uint16_t bits) {
  int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  double value = exponent == 31 ? (mantissa ? NAN : INFINITY)
                 : exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24);
  return bits >> 15 ? -value : value;
}
template <double (*number)(uint16_t)>
static void mma(float** d, const uint32_t* ab, const float* c) {
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int i = 0; i < 6; ++i) given[warp][lane * 6 + i] = ab[i];
  warp_barriers[warp]->arrive_and_wait();
  auto element = [&](int source, int reg, int half) {
    return number(given[warp][source * 6 + reg] >> 16 * half & 0xFFFF);
  };
  float result[4];
  for (int z = 0; z < 4; ++z) {
    int row = lane / 4 + z / 2 * 8, column = lane % 4 * 2 + z % 2;
    double sum = c[z];
    for (int k = 0; k < 16; ++k) {
      int quad = k % 8 / 2;
      double a = element(row % 8 * 4 + quad, row / 8 + k / 8 * 2, k % 2);
      sum += a * element(column * 4 + quad, 4 + k / 8, k % 2);
    }
    result[z] = sum;
  }
  warp_barriers[warp]->arrive_and_wait();
  for (int z = 0; z < 4; ++z) *d[z] = result[z];
}
"""
_MMA = re.compile(
    r"__forceinline__ __device__ void (tvm_builtin_ptx_mma_sync_aligned_m16n8k16_row_col_f32_(b?f16)_\w+)"
    r"\([^\n]*\n[^\n]*\n}"
)
_SHARED = re.compile(r"__shared__ (alignas\(\d+\))")
#: Functions that TVM generates for vectors, and what they do: load or store 2 or 4 words.
_VECTOR = re.compile(
    r"__forceinline__ __device__ void (tvm_builtin_ptx_(ld|st)_vec_\w*v(\d)_u32)\([^\n]*\n[^\n]*\n}"
)
_LOP3 = re.compile(
    r'asm\("lop3.b32 %0, %1, %2, %3, (\w+);" : "=r"\((\w+)\) : "r"\((.+?)\), "r"\((.+?)\), "r"\((.+?)\)\);'
)
_OPTIONS = ("-std=c++20", "-O1", "-w", "-shared", "-fPIC", "-pthread")
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


def _mma(match):
    d = ", ".join(f"float& d{i}" for i in range(4))
    ab = ", ".join(f"uint32_t ab{i}" for i in range(6))
    c = ", ".join(f"float c{i}" for i in range(4))
    return f"""static void {match[1]}({d}, {ab}, {c}) {{
  float* d[4] = {{&d0, &d1, &d2, &d3}};
  uint32_t ab[6] = {{ab0, ab1, ab2, ab3, ab4, ab5}};
  float c[4] = {{c0, c1, c2, c3}};
  mma<{match[2]}>(d, ab, c);
}}"""


def _run(kernel, signature, arguments, together):
    """Return the C function that runs a kernel's grid."""
    call = f"{kernel}({', '.join(arguments)})"
    threads = f"for (threadIdx.x = 0; threadIdx.x < block; ++threadIdx.x) {call};"
    if together:
        threads = f"""{{
    block_barrier = std::make_unique<std::barrier<>>(block);
    warp_barriers.clear();
    for (int i = 0; i < block / 32; ++i) warp_barriers.push_back(std::make_unique<std::barrier<>>(32));
    given.assign(block / 32, std::vector<uint32_t>(32 * 6));
    std::vector<std::thread> threads;
    for (int i = 0; i < block; ++i) threads.emplace_back([=] {{ threadIdx.x = i; {call}; }});
    for (auto& thread : threads) thread.join();
  }}"""
    return f"""
extern "C" void run({signature}, int64_t grid, int64_t block) {{
  for (blockIdx.x = 0; blockIdx.x < grid; ++blockIdx.x) {threads}
}}
"""


def on_host(launch, target):
    """Return a function that calls a launch with NumPy arrays and returns all of them as they are afterwards."""
    name = f"on_host_{next(_numbers)}"
    target = with_host(target)
    lowered = lower_launch(launch, name, target)
    source = lowered.source[_FIRST_OWN.search(lowered.source).start() :]
    source = _LOP3.sub(r"\2 = lop3(\3, \4, \5, \1);", _VECTOR.sub(_vector, source))
    (signature,) = set(re.findall(rf"{name}_kernel\((.*?)\)", source))
    arguments = [argument.rsplit(" ", 1)[1] for argument in signature.split(", ")]
    together = "__syncthreads" in source
    prelude = _PRELUDE + _TOGETHER if together else _PRELUDE
    source = _SHARED.sub(r"\1 static", _MMA.sub(_mma, source)) + _run(
        f"{name}_kernel", signature, arguments, together
    )
    with tempfile.TemporaryDirectory() as folder:
        code, library = Path(folder) / "kernel.cc", Path(folder) / "kernel.so"
        code.write_text(prelude + source)
        compiler = os.environ.get("CXX", "g++")
        subprocess.run([compiler, *_OPTIONS, "-o", library, code], check=True)
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
