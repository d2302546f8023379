"""The plain CUDA schedule: one thread a weight row, eight activation rows a thread, no tensor cores.

It is right for every N, K, M and dtype, fp32 activations included, and its speed is no one's goal.
"""

from __future__ import annotations

from dataclasses import replace

from tvm import s_tir, te, tirx
from tvm.target import Target
from tvm.tirx import PrimFunc

from nvfp4_tvm.op.matmul import te_matmul, te_output
from nvfp4_tvm.schedules.base import KernelRule, MatmulProblem
from nvfp4_tvm.schedules.kernel import CudaKernel, Launch, Workspace

ROWS_PER_THREAD = 8
THREADS = 64


def matmul_prim_func(problem: MatmulProblem, pad_M: int = 1) -> PrimFunc:
    """Return the unscheduled block computation of ``problem`` with the kernel interface of :mod:`.base`.

    The block ``matmul`` covers M rounded up to a multiple of ``pad_M``, its rows beyond M being zero, so that
    a tile of it has constant extents.
    """
    M = tirx.Var("M", "int64") if problem.static_M is None else problem.static_M
    operands = problem.operands(M)
    tensors = {name: te.placeholder(shape, dtype, name) for name, (shape, dtype) in operands.items()}
    out = te_matmul(problem, tensors, pad_M)
    return te.create_prim_func([*tensors.values(), out])


class PlainGemm(KernelRule):
    """Any problem on any CUDA target."""

    name = "gemm_plain"

    def apply(self, problem: MatmulProblem, target: Target) -> CudaKernel | None:
        """Return the kernel, or None off CUDA."""
        if target.kind.name != "cuda":
            return self.refuse(problem, f"target is {target.kind.name}, not cuda")
        operands = ("x", "words", "scales", "global_scale", *(["bias"] if problem.bias else []))
        last = (*(["residual"] if problem.residual else []), "out")
        if problem.activation is None:
            return CudaKernel(self.name, (Launch(_matmul(problem), (*operands, *last), "s_tir"),))
        # A gate and its up are columns of two threads here, so they meet in memory
        products = replace(problem, activation=None, residual=False, out_dtype="float32")
        workspace = Workspace("products", "float32", lambda M: (M, problem.N))
        launches = (
            Launch(_matmul(products), (*operands, "products"), "s_tir"),
            Launch(activation_function(problem), ("products", *last), "s_tir"),
        )
        return CudaKernel(self.name, launches, (workspace,))


def _matmul(problem: MatmulProblem) -> PrimFunc:
    sch = s_tir.Schedule(matmul_prim_func(replace(problem, dynamic=True), ROWS_PER_THREAD))
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
    return sch.mod["main"]


def activation_function(problem: MatmulProblem) -> PrimFunc:
    """Return the launch that follows products [M, N] in fp32: activation, residual, cast."""
    M = tirx.Var("M", "int64")
    products = te.placeholder((M, problem.N), "float32", "products")
    shape = (M, problem.out_N)
    residual = te.placeholder(shape, problem.out_dtype, "residual") if problem.residual else None
    out = te_output(problem, M, lambda m, n: products[m, n], residual)
    sch = s_tir.Schedule(te.create_prim_func([products, *([] if residual is None else [residual]), out]))
    m, n = sch.get_loops(sch.get_sblock("epilogue"))
    n_outer, n_inner = sch.split(n, [None, THREADS])
    sch.bind(n_outer, "blockIdx.y")
    sch.bind(m, "blockIdx.x")
    sch.bind(n_inner, "threadIdx.x")
    return sch.mod["main"]
