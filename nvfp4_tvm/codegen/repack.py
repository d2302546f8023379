"""Build the repack kernel for a GPU: ``f(codes, scales, global_scale, words, block_scales, row_scales)``."""

from __future__ import annotations

from functools import partial

from tvm.target import Target

from nvfp4_tvm.codegen.cache import compile_cached
from nvfp4_tvm.codegen.matmul import Compiler
from nvfp4_tvm.codegen.single import BuiltLaunch, build_launch
from nvfp4_tvm.schedules.repack_kernel import repack_kernel


def build_repack(
    N: int, K: int, rows: int, target: Target, compiler: Compiler = compile_cached
) -> BuiltLaunch:
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
    return build_launch(f"nvfp4_repack_{N}x{K}_{rows}", partial(repack_kernel, N, K, rows), target, compiler)
