"""Build the dequantize kernel for a GPU: ``f(words, scales, global_scale, out)`` in machine code.

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
from nvfp4_tvm.schedules.dequant import dequantize_kernel


@dataclass(frozen=True)
class BuiltDequantize:
    """A compiled dequantization.

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
        """The host function: ``f(words, scales, global_scale, out)``."""
        return self.module[self.name]


_built: dict[tuple[int, int, str, str, Compiler], BuiltDequantize] = {}
_built_lock = threading.Lock()


def build_dequantize(
    N: int, K: int, out_dtype: str, target: Target, compiler: Compiler = compile_cached
) -> BuiltDequantize:
    """Build the dequantization of a packed weight [N, K] for a CUDA target, once per process.

    Parameters
    ----------
    N, K : int
        Shape of the weight.
    out_dtype : str
        float32, float16 or bfloat16.
    target : Target
        A CUDA target.
    compiler : callable, optional
        See :func:`~nvfp4_tvm.codegen.matmul.build_matmul`.

    Raises
    ------
    ShapeError
        If there is no such weight or dtype.
    TargetError
        If the target has no such kernel.
    CompileError
        If the kernel does not compile.
    """
    target = with_host(target)
    key = (N, K, out_dtype, str(target), compiler)
    with _built_lock:
        if key not in _built:
            kernel = dequantize_kernel(N, K, out_dtype, target)
            if kernel is None:
                raise TargetError(f"target {target.kind.name}: no dequantize kernel, expected cuda")
            (launch,) = kernel.launches
            name = f"nvfp4_dequantize_{N}x{K}_{out_dtype}"
            lowered = lower_launch(launch, name, target)
            code = compiler(lowered.source, lowered.arch)
            module = link(tvm.IRModule(), [lowered], [code], target)
            _built[key] = BuiltDequantize(name, module, BuildLog([code]))
        return _built[key]
