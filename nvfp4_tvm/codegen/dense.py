"""Build a plain linear layer for a GPU: ``f(x, weight, out)`` in machine code, branching on M."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import tvm
from tvm.target import Target

from nvfp4_tvm.codegen.cache import compile_cached
from nvfp4_tvm.codegen.host import Branch, host_function, lower_host
from nvfp4_tvm.codegen.launch import link, lower_launch, with_host
from nvfp4_tvm.codegen.machine_code import BuildLog
from nvfp4_tvm.codegen.matmul import Compiler, launch_names
from nvfp4_tvm.errors import TargetError
from nvfp4_tvm.schedules.base import MRange
from nvfp4_tvm.schedules.dense import dense_kernels
from nvfp4_tvm.schedules.dense_problem import DenseProblem
from nvfp4_tvm.schedules.kernel import CudaKernel


@dataclass(frozen=True)
class BuiltDense:
    """A compiled linear layer.

    Attributes
    ----------
    name : str
        Of the host function in ``module``.
    module : tvm.runtime.Module
        Host code that imports the CUDA modules.
    kernels : tuple of (MRange, CudaKernel)
        Which kernel runs for which M, in order.
    log : BuildLog
        Resources of the kernels.
    """

    name: str
    module: tvm.runtime.Module = field(repr=False)
    kernels: tuple[tuple[MRange, CudaKernel], ...] = field(repr=False)
    log: BuildLog = field(repr=False)

    @property
    def function(self) -> tvm.runtime.PackedFunc:
        """The host function: ``f(x, weight, out)``."""
        return self.module[self.name]


_built: dict[tuple[DenseProblem, str, Compiler], BuiltDense] = {}
_built_lock = threading.Lock()


def build_dense(problem: DenseProblem, target: Target, compiler: Compiler = compile_cached) -> BuiltDense:
    """Build a plain linear layer for a CUDA target, once per process.

    Parameters
    ----------
    problem : DenseProblem
        The layer.
    target : Target
        A CUDA target.
    compiler : callable, optional
        See :func:`~nvfp4_tvm.codegen.matmul.build_matmul`.

    Raises
    ------
    TargetError
        If the target has no kernel for it.
    CompileError
        If a kernel does not compile.
    """
    target = with_host(target)
    key = (problem, str(target), compiler)
    with _built_lock:
        if key not in _built:
            _built[key] = build_dense_kernels(problem, dense_kernels(problem, target), target, compiler)
        return _built[key]


def build_dense_kernels(
    problem: DenseProblem,
    kernels: list[tuple[MRange, CudaKernel]] | None,
    target: Target,
    compiler: Compiler = compile_cached,
) -> BuiltDense:
    """Build given kernels: those of the choice, or one that is tried.

    Raises
    ------
    TargetError, CompileError
        As :func:`build_dense`.
    """
    name = f"{problem.label}_{problem.dtype}_{problem.out_dtype}"
    if kernels is None:
        raise TargetError(
            f"target {target.kind.name}: has no kernel {name}, expected a cuda target, 16-bit operands and K a "
            "multiple of 8"
        )
    target = with_host(target)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        branches, launches, compiling = [], [], []
        for m_range, kernel in kernels:
            symbols = launch_names(name, kernel)
            branches.append(Branch(m_range, kernel, symbols))
            for symbol, launch in zip(symbols, kernel.launches, strict=True):
                launches.append(lower_launch(launch, symbol, target))
                compiling.append(pool.submit(compiler, launches[-1].source, launches[-1].arch))
        codes = [code.result() for code in compiling]
    host = lower_host(host_function(name, problem, branches, target, workspace=False))
    return BuiltDense(name, link(host, launches, codes, target), tuple(kernels), BuildLog(codes))
