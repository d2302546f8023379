"""What a user writes for a compilation target, turned into what TVM needs.

Accepted are ``llvm`` (this machine's CPU), ``llvm -mcpu=NAME ...``, ``cuda:sm_80``, ``cuda:sm_86``,
``cuda:sm_89``, ``cuda:sm_90`` and ``auto`` (the GPU in this machine, else its CPU). Everything else is
refused.
"""

from __future__ import annotations

import logging
import os
import platform
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import tvm
from tvm.target import Target
from tvm.target.codegen import (
    llvm_get_cpu_features,
    llvm_get_system_cpu,
    llvm_get_system_triple,
    llvm_is_valid_cpu,
)

from nvfp4_tvm.arch import (
    ARCHS,
    MAX_THREADS_PER_BLOCK,
    STATIC_SHARED_BYTES,
    WARP_SIZE,
    Arch,
    arch_of_capability,
    get_arch,
)
from nvfp4_tvm.codegen.cuda_runtime import load_cuda_runtime
from nvfp4_tvm.errors import TargetError

_LOG = logging.getLogger(__name__)

CHOICES = ("llvm", *(f"cuda:{name}" for name in ARCHS), "auto")
"""Targets as messages and help texts list them."""

_CHOICES_TEXT = ", ".join(CHOICES)

# The x86-64 psABI's second level (SSE4.2): every x86 processor since 2009
_PORTABLE_X86 = "x86-64-v2"

# Features by which LLVM chooses instructions on its own, with the name that Linux gives them where it is more
# than a matter of underscores (arch/x86/include/asm/cpufeatures.h)
_LINUX_FLAGS = {
    "bmi": "bmi1",
    "lzcnt": "abm",
    "amx-tile": "amxtile",
    "amx-bf16": "amxbf16",
    "amx-int8": "amxint8",
}
_X86_FEATURES = [
    "avx",
    "avx2",
    "fma",
    "f16c",
    "bmi",
    "bmi2",
    "lzcnt",
    "movbe",
    "popcnt",
    "gfni",
    "vaes",
    "vpclmulqdq",
    "avxvnni",
    "avx512f",
    "avx512bw",
    "avx512cd",
    "avx512dq",
    "avx512vl",
    "avx512ifma",
    "avx512vbmi",
    "avx512vbmi2",
    "avx512vnni",
    "avx512bitalg",
    "avx512vpopcntdq",
    "avx512bf16",
    "avx512fp16",
    "amx-tile",
    "amx-bf16",
    "amx-int8",
]

_LLVM_OPTIONS = ("mcpu", "mattr", "mtriple", "num-cores")


@dataclass(frozen=True)
class ResolvedTarget:
    """A target, ready for compilation.

    Attributes
    ----------
    name : str
        Canonical name: ``llvm`` with the options that were given, or ``cuda:sm_XY``. Never ``auto``.
    target : tvm.target.Target
        With its host.
    arch : Arch or None
        The GPU architecture; None for ``llvm``.
    """

    name: str
    target: Target
    arch: Arch | None

    @property
    def device_type(self) -> str:
        """``cpu`` or ``cuda``: where the library's kernels run."""
        return "cpu" if self.arch is None else "cuda"

    @property
    def code_arch(self) -> str | None:
        """Architecture for `nvfp4_tvm.codegen.cuda_machine_code`: the target's; None for ``llvm``."""
        return None if self.arch is None else str(self.target.attrs["arch"])


def resolve_target(text: str) -> ResolvedTarget:
    """Turn a target as a user writes it into TVM's.

    Parameters
    ----------
    text : str
        One of `CHOICES`, ``cuda:sm_90a``, or ``llvm`` with any of ``-mcpu=``, ``-mattr=``, ``-mtriple=``,
        ``-num-cores=``.

    Returns
    -------
    ResolvedTarget

    Raises
    ------
    TargetError
        For everything else.
    """
    text = text.strip()
    if text == "auto":
        return _resolve_auto()
    kind, _, rest = text.partition(":")
    if kind == "cuda" and rest:
        return cuda_target(rest)
    words = _split(text)
    if words and words[0] == "llvm":
        return _resolve_llvm(text, words[1:])
    raise TargetError(f"target {text!r} is not supported: choose one of {_CHOICES_TEXT}")


def cuda_target(arch: str, max_shared_memory: int = STATIC_SHARED_BYTES) -> ResolvedTarget:
    """Make the target for a GPU architecture.

    The host part of a CUDA library launches kernels and computes shapes. It is compiled for the oldest
    processor that a machine with such a GPU can have, so that a library runs on every machine with the GPU:
    ``x86-64-v2``, or LLVM's generic processor elsewhere.

    Parameters
    ----------
    arch : str
        ``sm_80``, ``sm_86``, ``sm_89``, ``sm_90``, or ``sm_90a`` for modules that use ``wgmma``.
    max_shared_memory : int
        The attribute ``max_shared_memory_per_block`` in bytes. TVM's own schedules (dlight, the paged KV
        cache) take it for the limit of static shared memory, so that is the default, as in TVM's target
        tags. A tuner of kernels with dynamic shared memory passes `Arch.shared_per_block`.

    Returns
    -------
    ResolvedTarget

    Raises
    ------
    TargetError
        When the architecture is not supported.
    """
    entry = get_arch(arch)
    if not 0 < max_shared_memory <= entry.shared_per_block:
        raise TargetError(
            f"{arch} allows a block 1 to {entry.shared_per_block} bytes of shared memory, "
            f"got {max_shared_memory}"
        )
    config = {
        "kind": "cuda",
        "arch": arch,
        "max_threads_per_block": MAX_THREADS_PER_BLOCK,
        "max_num_threads": MAX_THREADS_PER_BLOCK,
        "thread_warp_size": WARP_SIZE,
        "registers_per_block": entry.registers_per_block,
        "max_shared_memory_per_block": max_shared_memory,
        # Of the smallest cache among the cards: a library is compiled for the architecture
        "l2_cache_size_bytes": min(card.l2_bytes for card in entry.cards),
    }
    return ResolvedTarget(f"cuda:{arch}", Target(config, host=_portable_host()), entry)


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise TargetError(
            f"target {text!r} does not parse ({error}): choose one of {_CHOICES_TEXT}"
        ) from error


def _is_x86(triple: str) -> bool:
    return triple.partition("-")[0] in ("x86_64", "amd64", "i686", "i386")


def _portable_host() -> Target:
    triple = str(llvm_get_system_triple())
    cpu = _PORTABLE_X86 if _is_x86(triple) else "generic"
    return Target({"kind": "llvm", "mtriple": triple, "mcpu": cpu})


def _linux_cpu_flags() -> set[str] | None:
    """Flags of ``/proc/cpuinfo``; None where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "flags":
            return set(value.split())
    return None


def unsupported_features(cpu: str, attributes: Sequence[str]) -> list[str]:
    """Return the instructions that code for a processor may use and this machine lacks.

    Parameters
    ----------
    cpu : str
        LLVM's name of the processor that the code was compiled for.
    attributes : sequence of str
        LLVM attributes, such as ``-avx512f``, that the code was compiled with.

    Returns
    -------
    list of str
        Empty where the machine does not tell, or is no x86.
    """
    missing = _missing_features(cpu, str(llvm_get_system_triple())) if cpu else []
    return [name for name in missing if f"-{name}" not in attributes]


def _missing_features(cpu: str, triple: str) -> list[str]:
    """Features that LLVM takes for granted on a processor of this name and that this machine does not offer.

    LLVM goes by family and model, but a hypervisor can hide AVX-512 from a guest: code for the name alone
    then dies of an illegal instruction.
    """
    flags = _linux_cpu_flags()
    if flags is None or not _is_x86(triple):
        return []
    present = {flag.replace("_", "") for flag in flags}
    implied = set(map(str, llvm_get_cpu_features(Target({"kind": "llvm", "mtriple": triple, "mcpu": cpu}))))
    return [name for name in _X86_FEATURES if name in implied and _LINUX_FLAGS.get(name, name) not in present]


def _cores() -> int:
    # The cores this process may use, which a container can restrict
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _resolve_llvm(text: str, words: list[str]) -> ResolvedTarget:
    options: dict[str, str] = {}
    for word in words:
        key, equals, value = word.lstrip("-").partition("=")
        if not (word.startswith("-") and equals and value and key in _LLVM_OPTIONS and key not in options):
            known = ", ".join(f"-{name}=" for name in _LLVM_OPTIONS)
            raise TargetError(f"target {text!r} has an option {word!r} that is not one of {known}, each once")
        options[key] = value

    triple = options.get("mtriple", str(llvm_get_system_triple()))
    foreign = _machine(triple) != _machine(platform.machine())
    config: dict[str, object] = {"kind": "llvm", "mtriple": triple}

    cpu = options.get("mcpu", "native")
    if cpu == "native":
        if foreign:
            raise TargetError(f"target {text!r} is not for this machine's processor: name one with -mcpu=")
        cpu = str(llvm_get_system_cpu())
        config["mattr"] = [f"-{name}" for name in _missing_features(cpu, triple)]
    elif not llvm_is_valid_cpu(cpu, triple):
        raise TargetError(f"target {text!r} names a processor {cpu!r} that LLVM does not know for {triple}")
    config["mcpu"] = cpu

    if "mattr" in options:
        features = options["mattr"].split(",")
        if any(len(name) < 2 or name[0] not in "+-" for name in features):
            raise TargetError(f"target {text!r}: -mattr= takes features such as +avx2,-avx512f")
        config["mattr"] = [*config.get("mattr", []), *features]  # type: ignore[misc]
    if not config.get("mattr"):
        config.pop("mattr", None)

    cores = options.get("num-cores", str(_cores()))
    if not cores.isdigit() or int(cores) < 1:
        raise TargetError(f"target {text!r}: -num-cores= takes a positive number, got {cores!r}")
    config["num-cores"] = int(cores)

    target = Target(config)
    return ResolvedTarget(" ".join(["llvm", *words]), Target(target, host=target), None)


def _machine(triple: str) -> str:
    name = triple.partition("-")[0].lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(name, name)


@cache
def _log_once(level: int, message: str) -> None:
    _LOG.log(level, message)


def _local_capability() -> str | None:
    """Compute capability of this machine's first GPU as the driver gives it; None without one."""
    if not load_cuda_runtime():
        return None
    device = tvm.cuda(0)
    return str(device.compute_version) if device.exist else None


def _resolve_auto() -> ResolvedTarget:
    capability = _local_capability()
    if capability is not None:
        try:
            resolved = cuda_target(arch_of_capability(capability).name)
        except TargetError as error:
            _log_once(logging.WARNING, f"auto: compiling for this machine's CPU, because {error}")
        else:
            _log_once(logging.INFO, f"auto: compiling for this machine's GPU, {resolved.name}")
            return resolved
    else:
        _log_once(logging.WARNING, "auto: no usable NVIDIA GPU in this machine, compiling for its CPU")
    return _resolve_llvm("llvm", [])
