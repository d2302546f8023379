"""Build the repack kernel for a GPU: ``f(codes, scales, global_scale, words, block_scales, row_scales)``."""

from __future__ import annotations

from tvm.target import Target

from nvfp4_tvm import layout
from nvfp4_tvm.codegen.cache import compile_cached
from nvfp4_tvm.codegen.compiling import Compiler
from nvfp4_tvm.codegen.single import BuiltLaunch, build_launch
from nvfp4_tvm.schedules.kernel import Launch
from nvfp4_tvm.schedules.repack_kernel import Config, k_multiple, repack_kernel


def build_repack(
    N: int,
    K: int,
    target: Target,
    config: Config = Config(),  # noqa: B008
    compiler: Compiler = compile_cached,
) -> BuiltLaunch:
    """Build the repack of a weight [N, K] with one or N global scales for a CUDA target, once per process.

    Weights whose K is a multiple of the same power of two share it, see `schedules.repack_kernel`.

    Raises
    ------
    ShapeError
        If there is no such weight.
    TargetError
        If the target has no such kernel.
    CompileError
        If the kernel does not compile.
    """
    layout.check_weight(N, K, "pack")
    multiple = k_multiple(K)

    def launch(target: Target) -> Launch | None:
        return repack_kernel(multiple, target, config)

    name = f"nvfp4_repack_{multiple}_{config.unroll}_{config.span}_{config.threads}"
    return build_launch(name, launch, target, compiler)
