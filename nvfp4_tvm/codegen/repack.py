"""Build the repack kernel for a GPU: ``f(codes, scales, global_scale, words, block_scales, row_scales)``.

One launch has a host function of its own, which checks the arguments, so there is nothing to add.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import tvm
from tvm.target import Target

from nvfp4_tvm.codegen.cache import compile_cached
from nvfp4_tvm.codegen.launch import link, lower_launch, with_host
from nvfp4_tvm.codegen.machine_code import BuildLog
from nvfp4_tvm.codegen.matmul import Compiler
from nvfp4_tvm.errors import TargetError
from nvfp4_tvm.schedules.repack_kernel import repack_kernel


@dataclass(frozen=True)
class BuiltRepack:
    """A compiled repack.

    Attributes
    ----------
    name : str
        Of the host function in ``module``.
    module : tvm.runtime.Module
        Host code that imports the CUDA module.
    log : BuildLog
        Resources of the kernel.
    """

    name: str
    module: tvm.runtime.Module = field(repr=False)
    log: BuildLog = field(repr=False)

    @property
    def function(self) -> tvm.runtime.PackedFunc:
        """The host function."""
        return self.module[self.name]


_built: dict[tuple[int, int, int, str, Compiler], BuiltRepack] = {}
_built_lock = threading.Lock()


def build_repack(
    N: int, K: int, rows: int, target: Target, compiler: Compiler = compile_cached
) -> BuiltRepack:
    """Build the repack of a weight [N, K] with 1 or N global scales for a CUDA target, once per process.

    Raises
    ------
    ShapeError
        If there is no such weight.
    TargetError
        If the target has no such kernel.
    CompileError
        If the kernel does not compile.
    """
    target = with_host(target)
    key = (N, K, rows, str(target), compiler)
    with _built_lock:
        if key not in _built:
            launch = repack_kernel(N, K, rows, target)
            if launch is None:
                raise TargetError(f"target {target.kind.name}: no repack kernel, expected cuda")
            name = f"nvfp4_repack_{N}x{K}_{rows}"
            lowered = lower_launch(launch, name, target)
            code = compiler(lowered.source, lowered.arch)
            module = link(tvm.IRModule(), [lowered], [code], target)
            _built[key] = BuiltRepack(name, module, BuildLog([code]))
        return _built[key]
