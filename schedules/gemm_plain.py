"""The plain CUDA schedule: one thread a weight row, eight activation rows a thread, no tensor cores.

It is right for every N, K, M and dtype, fp32 activations included, and its speed is no one's goal.
"""

from __future__ import annotations

from tvm import s_tir, te, tirx
from tvm.target import Target
from tvm.tirx import PrimFunc

from nvfp4_tvm import layout
from nvfp4_tvm.op.matmul import te_matmul
from nvfp4_tvm.schedules.base import KernelRule, MatmulProblem

ROWS_PER_THREAD = 8
THREADS = 64


def matmul_prim_func(problem: MatmulProblem, pad_M: int = 1) -> PrimFunc:
    """Return the unscheduled block computation of ``problem`` with the kernel interface of :mod:`.base`.

    The block ``matmul`` covers M rounded up to a multiple of ``pad_M``, its rows beyond M being zero, so that
    a tile of it has constant extents.
    """
    N, K = problem.N, problem.K
    M = tirx.Var("M", "int64") if problem.static_M is None else problem.static_M
    x = te.placeholder((M, K), problem.x_dtype, name="x")
    words = te.placeholder(layout.words_shape(N, K), "uint32", name="words")
    scales = te.placeholder(layout.scales_shape(N, K), "uint32", name="scales")
    global_scale = te.placeholder(layout.global_scale_shape(N), "float32", name="global_scale")
    bias = te.placeholder((N,), problem.x_dtype, name="bias") if problem.bias else None
    out = te_matmul(x, words, scales, global_scale, bias, N, problem.out_dtype, pad_M)
    inputs = [x, words, scales, global_scale] + ([] if bias is None else [bias])
    return te.create_prim_func([*inputs, out])


class PlainGemm(KernelRule):
    """Any problem on any CUDA target."""

    name = "gemm_plain"

    def apply(self, problem: MatmulProblem, target: Target) -> PrimFunc | None:
        """Return the kernel, or None off CUDA."""
        if target.kind.name != "cuda":
            return self.refuse(problem, f"target is {target.kind.name}, not cuda")
        sch = s_tir.Schedule(matmul_prim_func(problem, ROWS_PER_THREAD))
        sch.compute_inline(sch.get_sblock("x_padded"))
        matmul, epilogue = sch.get_sblock("matmul"), sch.get_sblock("epilogue")
        m, n, k = sch.get_loops(matmul)
        m_outer, m_inner = sch.split(m, [None, ROWS_PER_THREAD])
        n_outer, n_inner = sch.split(n, [None, THREADS])
        sch.reorder(n_outer, m_outer, n_inner, k, m_inner)
        sch.bind(n_outer, "blockIdx.x")
        sch.bind(m_outer, "blockIdx.y")
        sch.bind(n_inner, "threadIdx.x")
        sch.set_scope(matmul, 0, "local")
        sch.reverse_compute_at(epilogue, n_inner)
        sch.decompose_reduction(matmul, k)
        return sch.mod["main"].with_attr("tirx.is_scheduled", 1)
