"""Build a matmul on packed weights for a GPU: every kernel of its dispatch as machine code, one host function.

The host function is ``f(x, words, scales, global_scale[, bias][, residual], out, workspace)``. It branches on M,
allocates nothing and launches on the current stream, so that it can be captured in a CUDA graph, called from Relax
(``R.call_dps_packed``), from C++, or on PyTorch tensors (:func:`BuiltMatmul.function`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import tvm
from tvm import tirx
from tvm.target import Target

from nvfp4_tvm.arch import get_arch
from nvfp4_tvm.codegen.cache import compile_cached
from nvfp4_tvm.codegen.compiling import Compiler, Compiling, begin
from nvfp4_tvm.codegen.launch import with_host
from nvfp4_tvm.codegen.machine_code import BuildLog
from nvfp4_tvm.codegen.workspace import Bytes, bound, exact
from nvfp4_tvm.errors import NVFP4Error, ShapeError
from nvfp4_tvm.schedules.base import KernelRule, MatmulProblem, MRange
from nvfp4_tvm.schedules.dispatch import kernels_for
from nvfp4_tvm.schedules.kernel import CudaKernel
from nvfp4_tvm.schedules.tuned import digest


@dataclass(frozen=True)
class BuiltMatmul:
    """A compiled matmul.

    Attributes
    ----------
    name : str
        Of the host function in ``module``.
    problem : MatmulProblem
        What it computes.
    module : tvm.runtime.Module
        Host code that imports the CUDA modules.
    kernels : tuple of (MRange, CudaKernel)
        Which kernel runs for which M, in order.
    bytes : Bytes
        Linear bound on the workspace.
    log : BuildLog
        Resources of the kernels.
    """

    name: str
    problem: MatmulProblem
    module: tvm.runtime.Module = field(repr=False)
    kernels: tuple[tuple[MRange, CudaKernel], ...] = field(repr=False)
    bytes: Bytes
    log: BuildLog = field(repr=False)

    @property
    def function(self) -> tvm.runtime.PackedFunc:
        """The host function: ``f(x, words, scales, global_scale[, bias][, residual], out, workspace)``."""
        return self.module[self.name]

    def kernel(self, M: int) -> CudaKernel:
        """Return the kernel that runs for ``M`` rows.

        Raises
        ------
        ShapeError
            If it was not built for that M.
        """
        for m_range, kernel in self.kernels:
            if M in m_range:
                return kernel
        built = MRange(self.kernels[0][0].low, self.kernels[-1][0].high)
        raise ShapeError(f"{self.name}: M is {M}, expected {built}; build the matmul for a wider range")

    def workspace_bytes(self, M: int) -> int:
        """Return the bytes of workspace that ``M`` rows need; 0 if none, also for M = 0."""
        return exact(self.kernel(M), M) if M else 0

    def workspace_bound(self, M: tirx.Expr) -> tirx.Expr:
        """Return a linear expression of a symbolic M that is no less than :meth:`workspace_bytes` anywhere."""
        return self.bytes.of(M)


def host_name(problem: MatmulProblem) -> str:
    """Return the name of a problem's host function: unique among problems, letters, digits and underscores."""
    short = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
    parts = [f"nvfp4_{problem.label}", short[problem.x_dtype]]
    if problem.out_dtype != problem.x_dtype:
        parts.append(short[problem.out_dtype])
    parts += ["bias"] * problem.bias + ["residual"] * problem.residual
    if problem.activation is not None:
        parts.append(problem.activation)
    if problem.M != MRange():
        parts.append(f"m{problem.M.low}_{'' if problem.M.high is None else problem.M.high}".rstrip("_"))
    return "_".join(parts)


_built: dict[tuple[MatmulProblem, str, str, Compiler], BuiltMatmul] = {}
_built_lock = threading.Lock()


def build_matmul(problem: MatmulProblem, target: Target, compiler: Compiler = compile_cached) -> BuiltMatmul:
    """Build the matmul ``problem`` for a CUDA target, once per process and tuning database.

    Parameters
    ----------
    problem : MatmulProblem
        Its range of M decides which kernels are built; M is symbolic in all of them.
    target : Target
        A CUDA target (:func:`nvfp4_tvm.target.resolve_target`); without a host, that of ``resolve_target``.
    compiler : callable, optional
        ``compiler(source, arch)``, from CUDA source to machine code. Default: NVRTC, with a cache on disk
        (:mod:`nvfp4_tvm.codegen.cache`).

    Raises
    ------
    TargetError
        If no kernel applies to a part of the range, or compilation needs something that is not installed.
    CompileError
        If a kernel does not compile.
    """
    return build_matmuls([problem], target, compiler)[problem]


def build_matmuls(
    problems: Sequence[MatmulProblem], target: Target, compiler: Compiler = compile_cached
) -> dict[MatmulProblem, BuiltMatmul]:
    """Build several matmuls as :func:`build_matmul` does each, at once: one is lowered while others compile.

    Raises
    ------
    TargetError, CompileError
        As :func:`build_matmul`.
    """
    target = with_host(target)
    databases = digest(get_arch(str(target.attrs["arch"])).name)
    keys = {problem: (problem, str(target), databases, compiler) for problem in problems}
    with _built_lock, ThreadPoolExecutor(os.cpu_count()) as pool:
        begun = {}
        for problem, key in keys.items():
            if key not in _built:
                begun[key] = _begin(problem, _merged(kernels_for(problem, target)), target, compiler, pool)
        for key, compiling in begun.items():
            _built[key] = compiling.finish()
        return {problem: _built[key] for problem, key in keys.items()}


def build_kernels(
    problem: MatmulProblem,
    kernels: Sequence[tuple[MRange, CudaKernel]],
    target: Target,
    compiler: Compiler = compile_cached,
) -> BuiltMatmul:
    """Build a matmul of given kernels: those of the dispatch, or one that is tried.

    Raises
    ------
    TargetError, CompileError
        As :func:`build_matmul`.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return _begin(problem, kernels, with_host(target), compiler, pool).finish()


@dataclass(frozen=True)
class _Matmul:
    """A matmul whose kernels are lowered, while their sources are being compiled."""

    problem: MatmulProblem
    compiling: Compiling

    def finish(self) -> BuiltMatmul:
        module, log = self.compiling.finish()
        kernels = self.compiling.kernels
        return BuiltMatmul(self.compiling.name, self.problem, module, kernels, bound(kernels), log)


def _begin(
    problem: MatmulProblem,
    kernels: Sequence[tuple[MRange, CudaKernel]],
    target: Target,
    compiler: Compiler,
    pool: ThreadPoolExecutor,
) -> _Matmul:
    return _Matmul(problem, begin(host_name(problem), problem, kernels, target, compiler, pool))


def _merged(chosen: Sequence[tuple[MRange, KernelRule, object]]) -> list[tuple[MRange, CudaKernel]]:
    """Join neighbouring ranges that got the same kernel.

    Raises
    ------
    NVFP4Error
        If a rule of a CUDA table returned something else than a CudaKernel.
    """
    merged: list[tuple[MRange, CudaKernel]] = []
    for m_range, rule, kernel in chosen:
        if not isinstance(kernel, CudaKernel):
            raise NVFP4Error(f"rule {rule.name}: returned {type(kernel).__name__}, expected a CudaKernel")
        if merged and merged[-1][1].name == kernel.name:
            merged[-1] = (MRange(merged[-1][0].low, m_range.high), merged[-1][1])
        else:
            merged.append((m_range, kernel))
    return merged
