"""Build a plain linear layer for a GPU: ``f(x, weight, out)`` in machine code, branching on M."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

from tvm.target import Target

from nvfp4_tvm.codegen.cache import compile_cached
from nvfp4_tvm.codegen.compiling import Compiler, begin
from nvfp4_tvm.codegen.launch import with_host
from nvfp4_tvm.codegen.single import BuiltLaunch
from nvfp4_tvm.errors import TargetError
from nvfp4_tvm.schedules.base import MRange
from nvfp4_tvm.schedules.dense import dense_kernels
from nvfp4_tvm.schedules.dense_problem import DenseProblem
from nvfp4_tvm.schedules.kernel import CudaKernel

_built: dict[tuple[DenseProblem, str, Compiler], BuiltLaunch] = {}
_built_lock = threading.Lock()


def build_dense(problem: DenseProblem, target: Target, compiler: Compiler = compile_cached) -> BuiltLaunch:
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
) -> BuiltLaunch:
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
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        compiling = begin(name, problem, kernels, with_host(target), compiler, pool, workspace=False)
        return BuiltLaunch(name, *compiling.finish())
