"""From what a user writes to TVM's targets."""

import logging

import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm.target.codegen import llvm_get_system_cpu

from nvfp4_tvm import target as target_module
from nvfp4_tvm.arch import ARCHS, get_arch
from nvfp4_tvm.errors import TargetError
from nvfp4_tvm.target import CHOICES, cuda_target, resolve_target


@pytest.fixture(autouse=True)
def forget_what_was_logged():
    target_module._log_once.cache_clear()


@pytest.mark.parametrize("name", [*ARCHS, "sm_90a"])
def test_cuda(name):
    resolved = resolve_target(f" cuda:{name} ")
    assert resolved.name == f"cuda:{name}" and resolved.device_type == "cuda"
    assert resolved.arch is get_arch(name) and resolved.code_arch == name
    attrs = resolved.target.attrs
    assert resolved.target.kind.name == "cuda" and set(resolved.target.keys) == {"cuda", "gpu"}
    assert attrs["arch"] == name
    assert attrs["max_threads_per_block"] == attrs["max_num_threads"] == 1024
    assert attrs["thread_warp_size"] == 32 and attrs["registers_per_block"] == 65536
    assert attrs["max_shared_memory_per_block"] == 49152
    assert resolved.target.host.kind.name == "llvm"


@pytest.mark.parametrize(
    ("tag", "name"),
    [
        ("nvidia/nvidia-a100", "sm_80"),
        ("nvidia/geforce-rtx-3090", "sm_86"),
        ("nvidia/geforce-rtx-4090", "sm_89"),
        ("nvidia/nvidia-h100", "sm_90a"),
    ],
)
def test_agrees_with_tvms_tags(tag, name):
    theirs, ours = tvm.target.Target(tag).attrs, cuda_target(name).target.attrs
    for key in theirs:
        assert ours[key] == theirs[key], key


def test_cuda_host_runs_on_any_machine():
    host = cuda_target("sm_89").target.host
    assert host.attrs["mcpu"] in ("x86-64-v2", "generic")
    assert host.attrs["mcpu"] != llvm_get_system_cpu()


def test_dynamic_shared_memory():
    limit = get_arch("sm_89").shared_per_block
    assert cuda_target("sm_89", limit).target.attrs["max_shared_memory_per_block"] == limit == 99 * 1024
    for bad in (0, limit + 1):
        with pytest.raises(TargetError, match="1 to 101376 bytes"):
            cuda_target("sm_89", bad)


def test_llvm_is_this_machine():
    resolved = resolve_target("llvm")
    assert resolved.name == "llvm" and resolved.device_type == "cpu"
    assert resolved.arch is None and resolved.code_arch is None
    assert resolved.target.attrs["mcpu"] == llvm_get_system_cpu()
    assert resolved.target.attrs["num-cores"] >= 1
    assert resolved.target.host.attrs["mcpu"] == llvm_get_system_cpu()
    assert resolve_target("llvm -mcpu=native").target.attrs["mcpu"] == llvm_get_system_cpu()


def test_hidden_features_are_switched_off(monkeypatch):
    """A hypervisor can hide what the processor's name promises."""
    monkeypatch.setattr(
        target_module, "_linux_cpu_flags", lambda: {"avx", "avx2", "fma", "bmi1", "abm", "f16c"}
    )
    missing = target_module._missing_features("skylake-avx512", "x86_64-linux-gnu")
    assert {"avx512f", "avx512bw", "bmi2", "popcnt"} <= set(missing)
    assert not {"avx2", "fma", "bmi", "lzcnt", "avx512fp16"} & set(missing)
    # Linux writes underscores where LLVM has none
    flags = {"avx512_vnni", "avx512_bf16", "avx512_vbmi2", "avx_vnni", "avx512_bitalg", "avx512_vpopcntdq"}
    monkeypatch.setattr(target_module, "_linux_cpu_flags", lambda: flags)
    missing = target_module._missing_features("sapphirerapids", "x86_64-linux-gnu")
    assert not {"avx512vnni", "avx512bf16", "avx512vbmi2", "avxvnni", "avx512bitalg"} & set(missing)
    assert "avx512fp16" in missing
    assert target_module._missing_features("neoverse-n1", "aarch64-linux-gnu") == []
    monkeypatch.setattr(target_module, "_linux_cpu_flags", lambda: None)
    assert target_module._missing_features("sapphirerapids", "x86_64-linux-gnu") == []


def test_hidden_features_reach_the_target(monkeypatch):
    monkeypatch.setattr(target_module, "_missing_features", lambda cpu, triple: ["avx512f"])
    assert list(resolve_target("llvm").target.attrs["mattr"]) == ["-avx512f"]
    assert list(resolve_target("llvm -mattr=+avx2").target.attrs["mattr"]) == ["-avx512f", "+avx2"]
    # A processor that was named is taken at its word
    assert "mattr" not in resolve_target("llvm -mtriple=x86_64-linux-gnu -mcpu=skylake").target.attrs


def test_llvm_options():
    resolved = resolve_target(
        "llvm -mtriple=aarch64-linux-gnu -mcpu=neoverse-n1 -mattr=+dotprod -num-cores=7"
    )
    attrs = resolved.target.attrs
    assert attrs["mcpu"] == "neoverse-n1" and attrs["mtriple"] == "aarch64-linux-gnu"
    assert list(attrs["mattr"]) == ["+dotprod"] and attrs["num-cores"] == 7
    # The canonical name says the same
    assert str(resolve_target(resolved.name).target) == str(resolved.target)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("llvm -mcpu=pentium-9", "does not know"),
        ("llvm -mcpu=", "not one of -mcpu="),
        ("llvm -mcpu", "not one of -mcpu="),
        ("llvm mcpu=skylake", "not one of -mcpu="),
        ("llvm -mcpu=skylake -mcpu=haswell", "each once"),
        ("llvm -O3", "not one of -mcpu="),
        ("llvm -mattr=avx2", "takes features"),
        ("llvm -mattr=+avx2,,", "takes features"),
        ("llvm -num-cores=0", "positive number"),
        ("llvm -num-cores=two", "positive number"),
        ("llvm -mtriple=riscv64-linux-gnu", "name one with -mcpu="),
        ("llvm 'unclosed", "does not parse"),
    ],
)
def test_bad_llvm_options(text, words):
    with pytest.raises(TargetError, match=words) as info:
        resolve_target(text)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "metal",
            "vulkan",
            "rocm",
            "webgpu",
            "opencl",
            "c",
            "",
            " ",
            "cuda",
            "cuda:",
            "CUDA:sm_89",
            "llvmx",
        ),
        *("nvidia/nvidia-h100", "auto:", "auto -x", '{"kind": "cuda"}', "cuda sm_89", "cuda -arch=sm_89"),
        *(
            "cuda:sm_75",
            "cuda:sm_70",
            "cuda:sm_100",
            "cuda:sm_100a",
            "cuda:sm_120",
            "cuda:89",
            "cuda:sm_89 -x",
        ),
    ],
)
def test_unsupported(text):
    with pytest.raises(TargetError) as info:
        resolve_target(text)
    message = str(info.value)
    assert "\n" not in message and "not supported" in message
    assert all(name in message for name in ARCHS)


@settings(deadline=None, max_examples=100)
@given(st.text(max_size=30))
def test_any_text_is_resolved_or_refused(text):
    try:
        assert resolve_target(text).name
    except TargetError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("capability", "name", "level", "words"),
    [
        ("8.0", "cuda:sm_80", logging.INFO, "cuda:sm_80"),
        ("9.0", "cuda:sm_90", logging.INFO, "cuda:sm_90"),
        ("7.5", "llvm", logging.WARNING, "sm_75"),
        ("10.0", "llvm", logging.WARNING, "FP4 units"),
        (None, "llvm", logging.WARNING, "no usable NVIDIA GPU"),
    ],
)
def test_auto(monkeypatch, caplog, capability, name, level, words):
    monkeypatch.setattr(target_module, "_local_capability", lambda: capability)
    with caplog.at_level(logging.INFO, logger="nvfp4_tvm.target"):
        assert resolve_target("auto").name == name
        assert resolve_target("auto").name == name
    (record,) = caplog.records
    assert record.levelno == level and words in record.message


def test_auto_on_this_machine():
    resolved = resolve_target("auto")
    assert (resolved.device_type == "cuda") <= bool(tvm.cuda(0).exist)
    assert resolved.name.split()[0] in CHOICES
