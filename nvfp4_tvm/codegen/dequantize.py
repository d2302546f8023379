"""Build the dequantize kernel for a GPU: ``f(words, scales, global_scale, out)`` in machine code."""

from __future__ import annotations

from tvm.target import Target

from nvfp4_tvm.codegen.cache import compile_cached
from nvfp4_tvm.codegen.compiling import Compiler
from nvfp4_tvm.codegen.single import BuiltLaunch, build_launch
from nvfp4_tvm.schedules.dequant import dequantize_kernel
from nvfp4_tvm.schedules.kernel import Launch


def build_dequantize(
    N: int, K: int, out_dtype: str, target: Target, compiler: Compiler = compile_cached
) -> BuiltLaunch:
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

    def launch(target: Target) -> Launch | None:
        kernel = dequantize_kernel(N, K, out_dtype, target)
        return None if kernel is None else kernel.launches[0]

    return build_launch(f"nvfp4_dequantize_{N}x{K}_{out_dtype}", launch, target, compiler)
