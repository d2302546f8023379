"""That kernels run on the CPU as on a GPU cannot be shown here; that their mistakes show, can."""

import ctypes
import functools
import re
import subprocess
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from cuda_on_host import kernel_on_host
from cuda_source import as_cpp
from mma_problems import Case

from nvfp4_tvm.schedules.base import MatmulProblem
from nvfp4_tvm.schedules.gemm_cluster import cluster_kernel
from nvfp4_tvm.schedules.gemm_cluster_config import ClusterConfig
from nvfp4_tvm.schedules.gemm_wgmma import wgmma_kernel
from nvfp4_tvm.schedules.gemm_wgmma_config import WgmmaConfig
from nvfp4_tvm.schedules.gemm_wgmma_ss_config import SharedWgmmaConfig
from nvfp4_tvm.target import cuda_target

PROBLEM = MatmulProblem(100, 528)
KERNELS = {
    "rs": wgmma_kernel(PROBLEM, WgmmaConfig(32, 1, 2, 2, 1, overhead=0), 3),
    "ss": wgmma_kernel(PROBLEM, SharedWgmmaConfig(128, 3, 2, 1), 2),
    "cluster": cluster_kernel(PROBLEM, ClusterConfig(32, 2, 1, 4, 3, 2)),
}


def without(pattern):
    """Calls that match are left out."""
    return lambda source: re.sub(rf"\n\s*(tvm_builtin_)?(\w*{pattern}\w*)\([^\n{{]*\);", ";", source)


@functools.cache
def built(kernel, edit=None):
    return kernel_on_host(KERNELS[kernel], cuda_target("sm_90").target, edit)


def run(kernel, edit=None, **how):
    case = Case.random(PROBLEM, 33)
    case.check(built(kernel, edit)(case.operands, case.empty(PROBLEM), **how))


@pytest.mark.parametrize(
    ("kernel", "left_out", "how"),
    [
        ("rs", "wgmma_wait_group_wait_group_sync_aligned_1", {"late": True}),
        ("rs", "cp_async_wait_group_async_wait_group", {"late": True}),
        ("rs", "mbarrier_wait", {"order": 1}),
        ("cluster", "barrier_cluster_wait", {"order": 1}),
        ("cluster", "cp_async_wait_group_async_wait_group", {"late": True}),
    ],
)
def test_a_wait_that_is_missing_shows(kernel, left_out, how):
    run(kernel, **how)
    with pytest.raises((AssertionError, RuntimeError)):
        run(kernel, without(left_out), **how)


@pytest.mark.parametrize(
    ("kernel", "left_out"),
    [("rs", "mbarrier_arrive_expect_tx"), ("cluster", "barrier_cluster_arrive"), ("rs", "st_release")],
)
def test_who_waits_for_ever_is_told(kernel, left_out):
    with pytest.raises(RuntimeError, match="threads wait"):
        run(kernel, without(left_out))


@pytest.mark.parametrize("kernel", ["ss", "cluster"])
def test_a_fence_that_is_missing_shows(kernel):
    run(kernel, late=False)
    with pytest.raises(RuntimeError, match="without a fence"):
        run(kernel, without("fence_proxy_proxy_async"), late=False)


@pytest.mark.parametrize(
    "place",
    [
        r"words_ptr\[",
        r"x_tiles_ptr\[",
        r"flags_ptr\[",
        r"partials_ptr\[",
        r"global_scale_ptr\[",
        r"out_ptr\[",
    ],
)
def test_memory_of_no_tensor_is_told(place):
    with pytest.raises(RuntimeError, match="memory of no tensor"):
        run("rs", lambda source: re.sub(rf"(\b{place})", r"\g<1>(1 << 24) + ", source))


def test_a_misaligned_address_is_told():
    with pytest.raises(RuntimeError, match="a misaligned address"):
        run("rs", lambda source: re.sub(r"(cp_async_cg\w*\([^;]*?words_ptr\[)", r"\g<1>1 + ", source))


def test_an_instruction_that_is_not_known_is_named():
    source = 'extern "C" void f_kernel(int a) { asm volatile("tensormap.replace %0;" : : "r"(a)); }'
    with pytest.raises(LookupError, match=r"instruction tensormap\.replace"):
        as_cpp("\n" + source, "f_kernel")


def test_assembly_becomes_calls():
    source = """
extern "C" void f_kernel(uint a, const void* b, int c) {
  asm volatile("ld.global.nc.v2.u32 {%0, %1}, [%2];" : "=r"(x[0]), "=r"(x[f(1)]) : "l"(b) : "memory");
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(g("):")), "r"(0x80008000u));
  asm volatile("cp.async.ca.shared.global [%0+16], [%1+32], 4, %2;" :  : "r"(a), "l"(b), "r"(c) : "memory");
  asm volatile("st.global.cg.u32 [%0], %1;" :: "l"(b), "r"(a));
  asm volatile("fence.acq_rel.gpu;" ::: "memory");
}"""
    code, parameters = as_cpp(source, "f_kernel")
    assert parameters == ["uint a", "const void* b", "int c"]
    assert re.findall(r"^  (.*);$", code, re.M) == [
        "ptx::ld({&(x[0]), &(x[f(1)])}, b)",
        'ptx::fma<nv_bfloat16>(d, a, g("):"), 0x80008000u)',
        "ptx::cp_async(ptx::plus(a, 16), ptx::plus(b, 32), 4, c)",
        "ptx::st(b, {a})",
        "(void)0",
    ]


def test_numbers_are_rounded_as_numpy_rounds_them(tmp_path):
    code = """
#include "numbers.h"
extern "C" uint16_t to_bf16(double x) { return bits_bf16(x); }
extern "C" uint16_t to_f16(double x) { return bits_f16(x); }
extern "C" double from_bf16(uint16_t x) { return widened_bf16(x); }
extern "C" double from_f16(uint16_t x) { return widened_f16(x); }
"""
    (tmp_path / "numbers.cc").write_text(code)
    headers = Path(__file__).parent / "cuda"
    subprocess.run(
        ["g++", "-std=c++20", "-shared", "-fPIC", f"-I{headers}", "numbers.cc", "-o", "numbers.so"],
        cwd=tmp_path, check=True,
    )  # fmt: skip
    library = ctypes.CDLL(str(tmp_path / "numbers.so"))
    rng = np.random.default_rng(0)
    for name, dtype in (("bf16", ml_dtypes.bfloat16), ("f16", np.float16)):
        narrow, widen = getattr(library, f"to_{name}"), getattr(library, f"from_{name}")
        narrow.argtypes, narrow.restype, widen.restype = [ctypes.c_double], ctypes.c_uint16, ctypes.c_double
        every = np.arange(1 << 16, dtype=np.uint16)
        with np.errstate(invalid="ignore"):
            values = every.view(dtype).astype(np.float64)
        finite = every[np.isfinite(values)]
        assert [widen(int(x)) for x in finite] == values[np.isfinite(values)].tolist()
        # Numbers, what is half way between two of them, and others
        near = values[np.isfinite(values)][rng.integers(0, len(finite), 3000)]
        random = (rng.standard_normal(3000) * 10.0 ** rng.uniform(-9, 6, 3000)).astype(np.float32)
        for x in [
            *near,
            *(near * (1 + 2.0**-9)),
            *(near + 2.0**-25),
            *random.astype(np.float64),
            1e300,
            -0.0,
        ]:
            with np.errstate(over="ignore"):
                assert narrow(x) == np.float32(x).astype(dtype).view(np.uint16), x
