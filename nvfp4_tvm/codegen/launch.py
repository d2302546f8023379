"""From one launch of a kernel to a host function, CUDA source and the module that holds its machine code."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.target import Target
from tvm.tirx.build import split_host_device_mods

from nvfp4_tvm.arch import get_arch
from nvfp4_tvm.codegen.cuda_runtime import FACTORY, ensure_cuda_codegen
from nvfp4_tvm.codegen.machine_code import CALLBACK, MachineCode
from nvfp4_tvm.errors import NVFP4Error
from nvfp4_tvm.schedules.kernel import Launch, Pipeline
from nvfp4_tvm.schedules.lowering import mma_pipeline
from nvfp4_tvm.target import cuda_target

#: The compiler callback and the factory are globals of TVM: one thread at a time may put its own there.
_lock = threading.RLock()


@dataclass(frozen=True)
class LoweredLaunch:
    """A launch after its tir pipeline.

    Attributes
    ----------
    name : str
        Symbol of the host function that checks the arguments and launches the kernel.
    host : tvm.IRModule
        Final TIR of the host's side.
    source : str
        CUDA source of the device's side.
    kernels : Map of str to FunctionInfo
        How each kernel of the source is called: types of its arguments, launch parameters.
    arch : str
        Architecture to compile the source for.
    """

    name: str
    host: tvm.IRModule
    source: str
    kernels: Mapping[str, Any]
    arch: str

    def runtime_module(self, image: bytes) -> tvm.runtime.Module:
        """Return the device module that holds ``image``."""
        with _replaced(CALLBACK, lambda source: image):
            return tvm_ffi.get_global_func(FACTORY)(self.source.encode(), "cuda", self.kernels, {})


def _passes(
    pipeline: Pipeline,
) -> tuple[tvm.transform.Pass, Callable[[], tvm.transform.Pass], Callable[[], tvm.transform.Pass]]:
    return mma_pipeline() if pipeline == "mma" else tirx.get_tir_pipeline(pipeline)


def with_host(target: Target) -> Target:
    """Return a CUDA target that has a host: its own, or that of :func:`nvfp4_tvm.target.cuda_target`."""
    if target.host is not None:
        return target
    return Target(target, host=cuda_target(str(target.attrs["arch"])).target.host)


def launch_target(launch: Launch, target: Target) -> Target:
    """Return the target of one launch: ``target``, or its architecture-specific form if the launch needs that."""
    arch = get_arch(str(target.attrs["arch"]))
    name = arch.compile_arch if launch.arch_specific else arch.name
    return Target(cuda_target(name).target, host=target.host)


def lower_launch(launch: Launch, name: str, target: Target) -> LoweredLaunch:
    """Lower a launch with its own pipeline and generate its CUDA source.

    Parameters
    ----------
    launch : Launch
        What to lower.
    name : str
        Global symbol of its host function; the kernel's is ``{name}_kernel``.
    target : Target
        Of the build.
    """
    chosen = launch_target(launch, target)
    function = launch.function.with_attr("global_symbol", name)
    passes, finalize_host, finalize_device = _passes(launch.pipeline)
    with chosen:
        mod = passes(tirx.transform.BindTarget(chosen)(tvm.IRModule({name: function})))
        host, devices = split_host_device_mods(mod)
        if len(devices) != 1:
            raise NVFP4Error(f"kernel {name}: lowered to {len(devices)} device modules, expected 1")
        ((_, device),) = devices.items()
        source, kernels = _cuda_source(finalize_device()(device), chosen)
        return LoweredLaunch(name, finalize_host()(host), source, kernels, str(chosen.attrs["arch"]))


def link(
    host: tvm.IRModule, launches: Sequence[LoweredLaunch], codes: Sequence[MachineCode], target: Target
) -> tvm.runtime.Module:
    """Return one host module of ``host`` and all launches, with the CUDA modules imported.

    Parameters
    ----------
    host : tvm.IRModule
        More host functions, lowered; they may call the launches by symbol.
    launches : sequence of LoweredLaunch
        The launches.
    codes : sequence of MachineCode
        That of each launch.
    target : Target
        With its host.
    """
    host = tvm.IRModule(dict(host.functions_items()))
    for launch in launches:
        host[launch.name] = launch.host[launch.name]
    with target:
        module = tvm.get_global_func("target.build.llvm")(host, target.host)
    for launch, code in zip(launches, codes, strict=True):
        module.import_module(launch.runtime_module(code.fatbin))
    return module


@contextmanager
def _replaced(name: str, function: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """Let another function bear the name of a global one; yield the one that bore it."""
    ensure_cuda_codegen()
    with _lock:
        previous = tvm_ffi.get_global_func(name)
        tvm_ffi.register_global_func(name, function, override=True)
        try:
            yield previous
        finally:
            tvm_ffi.register_global_func(name, previous, override=True)


def _cuda_source(device: tvm.IRModule, target: Target) -> tuple[str, Mapping[str, Any]]:
    """Return the source of a device module, and how its kernels are called, as TVM hands them to its runtime."""
    made: list[tuple[str, Mapping[str, Any]]] = []

    def capture(source: bytes, kind: str, kernels: Mapping[str, Any], more: Mapping[str, Any]) -> Any:
        if kind != "cuda" or more:
            raise NVFP4Error(f"TVM's code generator made {kind} with {dict(more)}, expected cuda alone")
        made.append((bytes(source).decode(), kernels))
        return factory(source, kind, kernels, more)

    # An image is stored, not looked at
    with _replaced(CALLBACK, lambda source: b"-"), _replaced(FACTORY, capture) as factory:
        tvm.get_global_func("target.build.cuda")(device, target)
    ((source, kernels),) = made
    return source, kernels
