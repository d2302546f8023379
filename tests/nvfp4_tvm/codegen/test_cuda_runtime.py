"""Loading TVM's CUDA runtime without a driver, and what that must not do to the process."""

import os
import subprocess
import sys
import textwrap

import pytest
import tvm_ffi

from nvfp4_tvm.codegen import cuda_runtime
from nvfp4_tvm.codegen.cuda_runtime import ensure_cuda_codegen, have_driver
from nvfp4_tvm.errors import TargetError

without_driver = pytest.mark.skipif(have_driver(), reason="needs a machine without an NVIDIA driver")


def _run(script: str, **environment: str) -> str:
    """Run a fresh interpreter; a crash at exit or any message on stderr fails the test."""
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, (result.returncode, result.stdout, result.stderr)
    assert result.stderr == ""
    return result.stdout


def test_registers_the_module_class():
    ensure_cuda_codegen()
    assert tvm_ffi.get_global_func("ffi.Module.create.cuda", allow_missing=True) is not None
    assert cuda_runtime.runs_on_stub() == (not have_driver())
    ensure_cuda_codegen()


@without_driver
@pytest.mark.parametrize("torch_first", [True, False])
def test_process_still_knows_that_it_has_no_gpu(torch_first):
    """PyTorch, the real CUDA runtime, the driver's name and TVM all go on as before."""
    out = _run(
        f"""
        import ctypes, sys
        if not {torch_first}:
            sys.modules["torch"] = None  # TVM imports it where it can
        import numpy
        import tvm
        from nvfp4_tvm.codegen import cuda_runtime
        from nvfp4_tvm.codegen.toolkit import nvidia_roots
        cuda_runtime.ensure_cuda_codegen()
        assert cuda_runtime.runs_on_stub() and not cuda_runtime.load_cuda_runtime()
        if not {torch_first}:
            del sys.modules["torch"]
        import torch
        assert not torch.cuda.is_available()
        assert torch.ones(3).sum() == 3
        assert not tvm.cuda(0).exist and not cuda_runtime.have_driver()

        # The stand-in does not answer to the driver's name
        try:
            ctypes.CDLL("libcuda.so.1")
        except OSError:
            print("no driver")

        # Running on the GPU is an error that says why
        try:
            tvm.runtime.tensor(numpy.zeros(4, "float32"), tvm.cuda(0))
        except RuntimeError as error:
            print(error)

        # The CPU is not affected
        a = tvm.runtime.tensor(numpy.arange(4, dtype="float32"))
        assert a.numpy().sum() == 6

        # 35 is cudaErrorInsufficientDriver, the real runtime's answer when it finds no libcuda; ours is 100
        paths = [r / "cuda_runtime" / "lib" / "libcudart.so.12" for r in nvidia_roots()]
        paths += [r / "cu13" / "lib" / "libcudart.so.13" for r in nvidia_roots()]
        answers = []
        for path in filter(lambda p: p.is_file(), paths):
            count = ctypes.c_int(-1)
            answers.append(ctypes.CDLL(str(path)).cudaGetDeviceCount(ctypes.byref(count)))
        assert answers and set(answers) == {{35}}, answers
        """
    )
    assert "no driver\n" in out
    assert "no CUDA driver on this machine" in out


@without_driver
def test_library_says_why_it_does_not_run(bf16_kernel, tmp_path):
    import tvm

    from nvfp4_tvm.codegen import cuda_machine_code
    from nvfp4_tvm.target import cuda_target

    with cuda_machine_code("sm_89"):
        tvm.compile(bf16_kernel, cuda_target("sm_89").target).export_library(str(tmp_path / "add.so"))
    out = _run(
        f"""
        import sys
        sys.modules["torch"] = None  # not needed here and slow to import
        import tvm
        try:
            tvm.runtime.load_module({str(tmp_path / "add.so")!r})
        except RuntimeError as error:
            print(error)
        """
    )
    assert "cuda" in out and "loader" in out


def test_needs_a_c_compiler(monkeypatch):
    monkeypatch.setattr(cuda_runtime.cc, "get_cc", lambda: None)
    with pytest.raises(TargetError, match="install gcc or clang"):
        cuda_runtime._load_on_stub()


def test_broken_c_compiler(monkeypatch):
    monkeypatch.setattr(cuda_runtime.cc, "get_cc", lambda: "false")
    with pytest.raises(TargetError, match="false fails") as info:
        cuda_runtime._load_on_stub()
    assert "\n" not in str(info.value)


def test_renamed_library_differs_in_the_names_only():
    original = cuda_runtime._library_path().read_bytes()
    renamed = cuda_runtime._renamed_library()
    assert len(renamed) == len(original)
    for old, new in cuda_runtime._RENAMED.items():
        assert b"\0" + old.encode() + b"\0" not in renamed
        renamed = renamed.replace(new.encode(), old.encode())
    assert renamed == original


def test_another_build_of_tvm_is_refused(monkeypatch, tmp_path):
    other = tmp_path / "libtvm_runtime_cuda.so"
    other.write_bytes(b"\0libcuda.so.1\0\0libcudart.so.12\0")
    monkeypatch.setattr(cuda_runtime, "_library_path", lambda: other)
    with pytest.raises(TargetError, match=r"names libcudart\.so\.13 0 times"):
        cuda_runtime._renamed_library()


def test_missing_library_is_refused(monkeypatch):
    monkeypatch.setattr(cuda_runtime, "package_lib_paths", lambda: [])
    with pytest.raises(TargetError, match=r"no libtvm_runtime_cuda\.so"):
        cuda_runtime._library_path()


def test_other_systems_are_refused(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(TargetError, match="Linux only, this is darwin"):
        cuda_runtime._load_on_stub()
