"""The mma.sync GEMM family, M >= 17 on every architecture: multistage cp.async, W decoded in registers.

The computation is in :mod:`.gemm_mma_compute`, its schedule in :mod:`.gemm_mma_schedule`, the choice of tiles in
:mod:`.gemm_mma_choice`; here they become a kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, reduce

from tvm import s_tir, te, tirx
from tvm.target import Target
from tvm.tirx import PrimFunc

from nvfp4_tvm import layout
from nvfp4_tvm.arch import Arch
from nvfp4_tvm.schedules import epilogue
from nvfp4_tvm.schedules.base import KernelRule, MatmulProblem, MRange
from nvfp4_tvm.schedules.gemm_mma_choice import MIN_M, choose_config, ranges
from nvfp4_tvm.schedules.gemm_mma_compute import partial_sums_shape
from nvfp4_tvm.schedules.gemm_mma_config import MmaConfig
from nvfp4_tvm.schedules.gemm_mma_schedule import schedule_gemm_mma
from nvfp4_tvm.schedules.kernel import CudaKernel, Launch, Workspace

#: Columns of out a thread of the second launch adds, at most: 16 bytes of fp32.
ADD_WIDTH = 4
ADD_THREADS = 128


class GemmMma(KernelRule):
    """16-bit activations, from :data:`.gemm_mma_choice.MIN_M` rows up.

    Parameters
    ----------
    config : MmaConfig, optional
        Instead of the one :func:`.gemm_mma_choice.choose_config` would take.
    """

    name = "gemm_mma"

    def __init__(self, config: MmaConfig | None = None) -> None:
        self.config = config

    def ranges(self, N: int, K: int, arch: Arch) -> Sequence[MRange]:
        """Ranges of M with one configuration each, for the dispatch."""
        return (MRange(MIN_M),) if self.config is not None else ranges(N, K, arch)

    def apply(self, problem: MatmulProblem, target: Target) -> CudaKernel | None:
        """See `KernelRule.apply`."""
        arch = self.arch_of(problem, target)
        if arch is None:
            return None
        if self.config is None and problem.M.low < MIN_M:
            return self.refuse(problem, f"M may be below {MIN_M}")
        config = self.config or choose_config(problem.N, problem.K, problem.M, arch)
        if why := config.exceeds(arch):
            return self.refuse(problem, why)
        # Ranges share configurations, hence kernels
        return kernel(replace(problem, M=MRange(), dynamic=True), config)


@lru_cache(maxsize=32)
def kernel(problem: MatmulProblem, config: MmaConfig) -> CudaKernel:
    """Return the kernel of one configuration."""
    gemm = schedule_gemm_mma(problem, config).mod["main"]
    extra = tuple(name for name in ("bias", "residual") if getattr(problem, name))
    scaled = ("global_scale", *extra, "out")
    name = f"gemm_mma_{config.name}"
    if config.splits == 1:
        return CudaKernel(name, (Launch(gemm, ("x", "words", "scales", *scaled), "mma"),))
    sums = Workspace("sums", "float32", lambda M: partial_sums_shape(problem, config, M))
    launches = (
        Launch(gemm, ("x", "words", "scales", "sums"), "mma"),
        Launch(add_splits(problem, config), ("sums", *scaled), "s_tir"),
    )
    return CudaKernel(name, launches, (sums,))


def add_splits(problem: MatmulProblem, config: MmaConfig, scheduled: bool = True) -> PrimFunc:
    """Return the second launch of a split GEMM: add the sums in order, then the epilogue."""
    M = tirx.Var("M", "int64")
    shape = (M, problem.out_N)
    sums = te.placeholder(partial_sums_shape(problem, config, M), "float32", name="sums")
    global_scale = te.placeholder(layout.global_scale_shape(problem.N), "float32", name="global_scale")
    bias = te.placeholder((problem.N,), problem.x_dtype, name="bias") if problem.bias else None
    residual = te.placeholder(shape, problem.out_dtype, name="residual") if problem.residual else None

    def row(m: tirx.Expr, n: tirx.Expr) -> tirx.Expr:
        total = reduce(lambda a, b: a + b, (sums[split, m, n] for split in range(config.splits)))
        return epilogue.row_value(total, global_scale[n], None if bias is None else bias[n])

    def element(m: tirx.Expr, column: tirx.Expr) -> tirx.Expr:
        added = None if residual is None else residual[m, column]
        if problem.activation is None:
            return epilogue.output(problem, row(m, column), residual=added)
        gate = column // 8 * layout.TILE_N + column % 8
        return epilogue.output(problem, row(m, gate), row(m, gate + 8), added)

    out = te.compute(shape, element, name="out")
    inputs = [sums, global_scale, *(t for t in (bias, residual) if t is not None)]
    function = te.create_prim_func([*inputs, out])
    if not scheduled:
        return function
    sch = s_tir.Schedule(function)
    m, column = sch.get_loops(sch.get_sblock("out"))
    width = ADD_WIDTH if problem.out_N % ADD_WIDTH == 0 else 1
    block, thread, vector = sch.split(column, [None, ADD_THREADS, width])
    sch.bind(m, "blockIdx.x")
    sch.bind(block, "blockIdx.y")
    sch.bind(thread, "threadIdx.x")
    sch.vectorize(vector)
    return sch.mod["main"].with_attr({"tirx.is_scheduled": 1, "tirx.noalias": True})
