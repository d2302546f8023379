"""NVRTC without a CUDA installation: options, our two small headers, errors."""

import pytest

from nvfp4_tvm.codegen import nvrtc
from nvfp4_tvm.codegen.nvrtc import CompileError, compile_source
from nvfp4_tvm.errors import TargetError

_EMPTY = 'extern "C" __global__ void k(float* a) { a[threadIdx.x] *= 2.0f; }\n'


def test_cubin_and_ptx():
    compiled = compile_source(_EMPTY, "sm_89")
    assert compiled.cubin[:4] == b"\x7fELF"
    ptx = compiled.ptx.rstrip(b"\0").decode()
    assert ".target sm_89" in ptx
    # 8.8 is the PTX ISA of CUDA 12.9; version 13 writes 9.x, which drivers of the 12.x line refuse
    assert ".version 8.8" in ptx
    assert compiled.ptx.endswith(b"\0")


def test_fast_math_is_off():
    source = 'extern "C" __global__ void k(float* a) { a[0] = a[1] / a[2] + sqrtf(a[3]); }\n'
    ptx = compile_source(source, "sm_80").ptx.decode()
    assert "div.rn.f32" in ptx and "sqrt.rn.f32" in ptx
    assert ".ftz" not in ptx and "div.approx" not in ptx and "div.full" not in ptx
    fast = compile_source(source, "sm_80", ["--use_fast_math"]).ptx.decode()
    assert ".ftz" in fast, "the check above would not notice fast math"


def test_own_headers_agree_with_the_language():
    # Every name of the two headers that TVM's header generator brings into scope
    compile_source(
        """#include <cuda/std/cstdint>
#include <cuda/std/type_traits>
using namespace cuda::std;
static_assert(sizeof(int8_t) == 1 && sizeof(uint8_t) == 1 && sizeof(int16_t) == 2);
static_assert(sizeof(uint16_t) == 2 && sizeof(int32_t) == 4);
static_assert(sizeof(uint32_t) == 4 && sizeof(int64_t) == 8 && sizeof(uint64_t) == 8);
static_assert(int8_t(-1) < 0 && int64_t(-1) < 0 && uint8_t(-1) > 0 && uint64_t(-1) > 0);
static_assert(is_same<int, int>::value && !is_same<int, const int>::value && !is_same_v<int, long>);
static_assert(is_integral<const bool>::value && is_integral<volatile uint64_t>::value);
static_assert(!is_integral<float>::value && !is_integral<int*>::value);
static_assert(is_floating_point<const float>::value && is_floating_point<double>::value);
static_assert(!is_floating_point<int>::value);
static_assert(is_signed<int>::value && is_signed<float>::value && !is_signed<uint32_t>::value);
static_assert(is_unsigned<const uint32_t>::value && is_unsigned<bool>::value && !is_unsigned<float>::value);
static_assert(!is_signed<int*>::value && !is_unsigned<int*>::value);
static_assert(is_same_v<enable_if<true, int>::type, int>);
static_assert(is_same_v<conditional<true, int, long>::type, int>);
static_assert(is_same_v<conditional<false, int, long>::type, long>);
template <class T, typename enable_if<is_integral<T>::value, int>::type = 0>
constexpr int pick(T) { return 1; }
template <class T, typename enable_if<!is_integral<T>::value, int>::type = 0>
constexpr int pick(T) { return 2; }
static_assert(pick(1) == 1 && pick(1.0f) == 2);
extern "C" __global__ void k(float* a) { a[0] = INFINITY; }
""",
        "sm_80",
    )


def test_tensor_map_is_complete():
    source = """#include <cuda.h>
static_assert(sizeof(CUtensorMap) == 128 && alignof(CUtensorMap) == 64);
extern "C" __global__ void k(const __grid_constant__ CUtensorMap map, float* a) { a[0] = sizeof(map); }
"""
    assert compile_source(source, "sm_90a").cubin


def test_wmma_header():
    # dlight's float16 matmul includes it
    source = (
        '#include <mma.h>\nextern "C" __global__ void k(nvcuda::wmma::fragment<nvcuda::wmma::accumulator,\
 16, 16, 16, float>* f) { nvcuda::wmma::fill_fragment(*f, 1.0f); }\n'
    )
    assert compile_source(source, "sm_80").cubin


def test_other_libcudacxx_headers_need_their_package(monkeypatch):
    monkeypatch.setattr("nvfp4_tvm.codegen.toolkit.nvidia_roots", lambda: [])
    with pytest.raises(TargetError, match=r"<cuda/barrier>.*nvidia-cuda-cccl-cu12"):
        nvrtc._environment("#include <cuda/barrier>\n#include <cuda/std/cstdint>\n")


def test_source_errors_carry_the_log():
    with pytest.raises(CompileError, match="undeclared_name") as info:
        compile_source('extern "C" __global__ void k() {\n undeclared_name = 1;\n}\n', "sm_89")
    assert "\n" not in str(info.value) and "sm_89" in str(info.value)
    assert "undefined" in info.value.log and "undeclared_name" in info.value.source


def test_ptxas_errors_are_errors():
    # Only ptxas looks into inline assembly
    with pytest.raises(CompileError, match="sm_80"):
        compile_source('extern "C" __global__ void k() { asm volatile("no.such.op;"); }\n', "sm_80")
