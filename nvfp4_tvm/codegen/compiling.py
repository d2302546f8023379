"""Kernels of ranges of M behind one host function: lowered one after another while their sources compile."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import tvm
from tvm.target import Target

from nvfp4_tvm.codegen.host import Branch, Problem, host_function, lower_host
from nvfp4_tvm.codegen.launch import LoweredLaunch, link, lower_launch
from nvfp4_tvm.codegen.machine_code import BuildLog, MachineCode
from nvfp4_tvm.schedules.base import MRange
from nvfp4_tvm.schedules.kernel import CudaKernel

logger = logging.getLogger(__name__)

#: Compiles CUDA source for an architecture.
Compiler = Callable[[str, str], MachineCode]


def launch_names(name: str, kernel: CudaKernel) -> tuple[str, ...]:
    """Return the names of a kernel's launches behind the host function ``name``."""
    count = len(kernel.launches)
    return tuple(f"{name}_{kernel.name}" + (f"_{index}" if count > 1 else "") for index in range(count))


@dataclass(frozen=True)
class Compiling:
    """Kernels that are lowered, while their sources are being compiled.

    Attributes
    ----------
    name : str
        Of the host function.
    problem : Problem
        What it computes.
    kernels : tuple of (MRange, CudaKernel)
        Which kernel runs for which M, in order.
    target : Target
        With its host.
    launches : tuple of LoweredLaunch
        Of all kernels, each once.
    codes : tuple of Future
        Machine code of each launch.
    workspace : bool
        Whether the host function takes one.
    """

    name: str
    problem: Problem
    kernels: tuple[tuple[MRange, CudaKernel], ...]
    target: Target
    launches: tuple[LoweredLaunch, ...]
    codes: tuple[Future[MachineCode], ...]
    workspace: bool

    def finish(self) -> tuple[tvm.runtime.Module, BuildLog]:
        """Wait for the compiler; return the module of the host function, and the resources of its kernels."""
        codes = [code.result() for code in self.codes]
        branches = [
            Branch(m_range, kernel, launch_names(self.name, kernel)) for m_range, kernel in self.kernels
        ]
        function = host_function(self.name, self.problem, branches, self.target, self.workspace)
        return link(lower_host(function), self.launches, codes, self.target), BuildLog(codes)


def begin(
    name: str,
    problem: Problem,
    kernels: Sequence[tuple[MRange, CudaKernel]],
    target: Target,
    compiler: Compiler,
    pool: ThreadPoolExecutor,
    workspace: bool = True,
) -> Compiling:
    """Lower kernels, and have their sources compiled: NVRTC releases Python's lock, so both go on at once."""
    logger.info("%s: %s", name, ", ".join(f"M {m_range}: {kernel.name}" for m_range, kernel in kernels))
    lowered: dict[str, LoweredLaunch] = {}
    codes = []
    for _, kernel in kernels:
        for symbol, launch in zip(launch_names(name, kernel), kernel.launches, strict=True):
            if symbol not in lowered:
                lowered[symbol] = lower_launch(launch, symbol, target)
                codes.append(pool.submit(compiler, lowered[symbol].source, lowered[symbol].arch))
    return Compiling(name, problem, tuple(kernels), target, tuple(lowered.values()), tuple(codes), workspace)
