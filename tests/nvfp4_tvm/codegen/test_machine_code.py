"""Builds that yield fatbins: contents, report, restoring of the compiler, errors."""

import numpy as np
import pytest
import tvm
import tvm_ffi
from relax_modules import NUMPY

from nvfp4_tvm.arch import arch_of_capability
from nvfp4_tvm.codegen import CompileError, compile_machine_code, cuda_machine_code, resource_usage
from nvfp4_tvm.codegen.fatbin import extract_fatbins
from nvfp4_tvm.codegen.machine_code import ResourceUsage, parse_ptxas_log
from nvfp4_tvm.codegen.sass import count_instructions, list_images, sass
from nvfp4_tvm.errors import TargetError
from nvfp4_tvm.target import cuda_target

_WGMMA = """extern "C" __global__ void plain(float* a) { a[threadIdx.x] *= 2.0f; }
extern "C" __global__ void k(float* a) {
  asm volatile("wgmma.fence.sync.aligned; wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;");
}
"""

_SPILLING = """extern "C" __global__ void spills(float* a) {
  float v[96];
#pragma unroll
  for (int i = 0; i < 96; ++i) v[i] = a[threadIdx.x + i * 1024];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 96; ++i) a[threadIdx.x * 96 + i] = v[(i * 37) % 96] * v[(i * 11) % 96];
}
extern "C" __global__ void shares(float* a) {
  __shared__ float s[512];
  s[threadIdx.x] = a[threadIdx.x];
  __syncthreads();
  a[threadIdx.x] = s[511 - threadIdx.x];
}
"""


def _callback():
    return tvm_ffi.get_global_func("tvm_callback_cuda_compile")


@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_89", "sm_90", "sm_90a"])
def test_build(kernel, arch, tmp_path):
    with cuda_machine_code(arch) as log:
        executable = tvm.compile(kernel, cuda_target(arch).target)
    (module,) = log.modules
    portable = arch.removesuffix("a")
    assert module.arch == arch and module.ptx_arch == portable
    assert list_images(module.fatbin) == [("cubin", arch), ("ptx", portable)]

    (name,) = log.usage
    usage = log.usage[name]
    assert name.startswith("add_") and 0 < usage.registers <= 32
    assert usage.spill_stores == usage.spill_loads == usage.stack == usage.static_shared == 0
    assert resource_usage(module.source, arch) == log.usage
    assert any(
        op.startswith(("FADD", "HADD2", "HFMA2")) for op in count_instructions(sass(module.fatbin, arch))
    )

    # What a user gets holds exactly these bytes, and no source that would have to be compiled
    library = tmp_path / "add.so"
    executable.export_library(str(library))
    contents = library.read_bytes()
    assert extract_fatbins(contents) == [module.fatbin]
    assert b"__global__" not in contents
    assert tvm.runtime.load_module(str(library)).imports[0].kind == "cuda"


def test_without_ptx(bf16_kernel):
    with cuda_machine_code("sm_89", ptx=False) as log:
        tvm.compile(bf16_kernel, cuda_target("sm_89").target)
    assert list_images(log.modules[0].fatbin) == [("cubin", "sm_89")]
    assert log.modules[0].ptx_arch is None


def test_wgmma_has_no_portable_ptx():
    code = compile_machine_code(_WGMMA, "sm_90a")
    assert code.ptx_arch is None
    assert list_images(code.fatbin) == [("cubin", "sm_90a")]
    with pytest.raises(CompileError, match="sm_90"):
        compile_machine_code(_WGMMA, "sm_90")


def test_spills_and_shared_memory_are_reported():
    usage = resource_usage(_SPILLING, "sm_89", ["--maxrregcount=32"])
    assert set(usage) == {"spills", "shares"}
    assert usage["spills"].registers == 32
    assert usage["spills"].spill_stores > 0 and usage["spills"].spill_loads > 0 and usage["spills"].stack > 0
    assert usage["shares"].static_shared == 2048
    assert usage["shares"].spill_stores == usage["shares"].stack == 0


def test_options_are_needed_for_that():
    free = resource_usage(_SPILLING, "sm_89")["spills"]
    assert free.registers > 32 and free.spill_stores == free.spill_loads == free.stack == 0


def test_log_of_ptxas():
    # As printed by ptxas of CUDA 11 to 12.8 ("info    :") and by NVRTC 12.9 ("        .")
    log = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'a' for 'sm_89'
ptxas info    : Function properties for a
ptxas         .     8 bytes stack frame, 16 bytes spill stores, 24 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 8 bytes cumulative stack size, 4096 bytes smem, 376 bytes cmem[0]
ptxas info    : Compiling entry function 'b' for 'sm_89'
ptxas info    : Function properties for b
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, 376 bytes cmem[0]
"""  # noqa: E501
    assert parse_ptxas_log(log) == {
        "a": ResourceUsage(40, 16, 24, 8, 4096),
        "b": ResourceUsage(12, 0, 0, 0, 0),
    }
    assert parse_ptxas_log("") == {}
    with pytest.raises(RuntimeError, match="kernel b"):
        parse_ptxas_log(log[: log.rindex("ptxas info    : Used")])


def test_compiler_is_restored(bf16_kernel):
    before = _callback()
    with cuda_machine_code("sm_80") as outer:
        ours = _callback()
        assert not ours.same_as(before)
        with cuda_machine_code("sm_90") as inner:
            tvm.compile(bf16_kernel, cuda_target("sm_90").target)
        assert _callback().same_as(ours)
        tvm.compile(bf16_kernel, cuda_target("sm_80").target)
    assert _callback().same_as(before)
    assert [m.arch for m in inner.modules] == ["sm_90"] and [m.arch for m in outer.modules] == ["sm_80"]


def test_compiler_is_restored_after_an_error():
    before = _callback()
    with pytest.raises(ZeroDivisionError), cuda_machine_code("sm_80"):
        raise ZeroDivisionError
    assert _callback().same_as(before)


def test_compile_errors_keep_their_type(bf16_kernel):
    """They cross TVM's C++ on the way."""
    with pytest.raises(CompileError, match="sm_89") as info:  # noqa: SIM117
        with cuda_machine_code("sm_89", options=["--no-such-option"]):
            tvm.compile(bf16_kernel, cuda_target("sm_89").target)
    assert "add_bf16" in info.value.source


def test_other_errors_of_a_build_are_not_hidden(bf16_kernel):
    with pytest.raises(KeyError, match="mine"), cuda_machine_code("sm_89", options=["--no-such-option"]):
        with pytest.raises(RuntimeError):
            tvm.compile(bf16_kernel, cuda_target("sm_89").target)
        raise KeyError("mine")


@pytest.mark.parametrize("arch", ["sm_75", "sm_100", "", "89"])
def test_unsupported_architecture(arch):
    before = _callback()
    with pytest.raises(TargetError, match="not supported"), cuda_machine_code(arch):
        pass
    assert _callback().same_as(before)
    with pytest.raises(TargetError, match="not supported"):
        compile_machine_code(_SPILLING, arch)
    with pytest.raises(TargetError, match="not supported"):
        resource_usage(_SPILLING, arch)


@pytest.mark.gpu
@pytest.mark.skipif(not tvm.cuda(0).exist, reason="needs an NVIDIA GPU")
def test_runs_as_machine_code_and_from_ptx(kernel, tmp_path):
    here = arch_of_capability(tvm.cuda(0).compute_version).name
    name = str(kernel.attrs["global_symbol"])
    dtype = NUMPY[str(kernel.params[0].dtype)]
    # sm_80's machine code does not run on another major version: there the driver translates the PTX
    for arch in {here, "sm_80"}:
        library = tmp_path / f"{arch}.so"
        with cuda_machine_code(arch):
            tvm.compile(kernel, cuda_target(arch).target).export_library(str(library))
        rng = np.random.default_rng(0)
        a, b = (
            tvm.runtime.tensor(rng.integers(-64, 64, 1024).astype(np.float32).astype(dtype), tvm.cuda(0))
            for _ in range(2)
        )
        c = tvm.runtime.tensor(np.full(1024, np.nan, np.float32).astype(dtype), tvm.cuda(0))
        tvm.runtime.load_module(str(library))[name](a, b, c)
        expected = a.numpy().astype(np.float32) + b.numpy().astype(np.float32)
        np.testing.assert_array_equal(c.numpy().astype(np.float32), expected)
