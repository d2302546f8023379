"""Finding compiler libraries, headers and tools."""

import pytest

from nvfp4_tvm.codegen import toolkit
from nvfp4_tvm.errors import TargetError


@pytest.fixture
def nothing_installed(monkeypatch):
    for function in (toolkit.load_library, toolkit.cuda_include):
        function.cache_clear()
    monkeypatch.setattr(toolkit, "nvidia_roots", lambda: [])
    monkeypatch.setattr(toolkit, "toolkit_roots", lambda: [])
    monkeypatch.setenv("PATH", "")
    yield
    for function in (toolkit.load_library, toolkit.cuda_include):
        function.cache_clear()


def test_found_here():
    assert toolkit.load_library("libnvrtc.so.12", "cuda_nvrtc").nvrtcVersion
    assert (toolkit.cuda_include() / "cuda_fp16.h").is_file()
    assert toolkit.find_tool("cuobjdump").is_file()


def test_loads_version_12_even_where_13_is_installed():
    import ctypes

    library = toolkit.load_library("libnvrtc.so.12", "cuda_nvrtc")
    major, minor = ctypes.c_int(), ctypes.c_int()
    assert library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)) == 0
    assert (major.value, minor.value) >= (12, 9) and major.value == 12


def test_missing_parts_say_what_to_install(nothing_installed):
    with pytest.raises(TargetError, match=r"libabsent\.so\.12.*nvfp4-tvm\[cuda\]"):
        toolkit.load_library("libabsent.so.12", "absent")
    with pytest.raises(TargetError, match=r"nvidia-cuda-runtime-cu12.*nvfp4-tvm\[cuda\]"):
        toolkit.cuda_include()
    with pytest.raises(TargetError, match=r"crt/mma\.h.*nvidia-cuda-nvcc-cu12>=12\.9,<13"):
        toolkit.extra_include("crt/mma.h", {"cuda_nvcc/include": "nvidia-cuda-nvcc-cu12"})
    with pytest.raises(TargetError, match="pip install nvidia-cuda-nvdisasm"):
        toolkit.find_tool("nvdisasm")


def test_tool_from_path(nothing_installed, monkeypatch, tmp_path):
    tool = tmp_path / "cuobjdump"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert toolkit.find_tool("cuobjdump") == tool


def test_tool_from_installation(nothing_installed, monkeypatch, tmp_path):
    monkeypatch.undo()
    monkeypatch.setattr(toolkit, "nvidia_roots", lambda: [])
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    (tmp_path / "bin").mkdir()
    tool = tmp_path / "bin" / "cuobjdump"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    assert toolkit.find_tool("cuobjdump") == tool
