"""The plain CUDA schedule on experts: one thread an element of the result, no tensor cores.

It is right for every problem and dtype, fp32 activations included, and its speed is no one's goal.
"""

from __future__ import annotations

from dataclasses import replace

from tvm import s_tir, te, tirx
from tvm.target import Target
from tvm.tirx import PrimFunc

from nvfp4_tvm.op.grouped_matmul import te_experts, te_products
from nvfp4_tvm.schedules.base import KernelRule, MatmulProblem, MRange
from nvfp4_tvm.schedules.gemm_plain import THREADS, activation_function
from nvfp4_tvm.schedules.grouped import GroupedProblem
from nvfp4_tvm.schedules.kernel import CudaKernel, Launch, Workspace


class PlainGrouped(KernelRule):
    """Any problem with experts on any CUDA target."""

    name = "gemm_plain_grouped"

    def apply(self, problem: MatmulProblem, target: Target) -> CudaKernel | None:
        """Return the kernel, or None off CUDA."""
        if not isinstance(problem, GroupedProblem):
            return self.refuse(problem, "there are no experts")
        if target.kind.name != "cuda":
            return self.refuse(problem, f"target is {target.kind.name}, not cuda")
        problem = replace(problem, M=MRange(), dynamic=True)
        operands = ("x", "words", "scales", "global_scale", "experts")
        experts = Workspace("experts", "int32", lambda M: (M,))
        find = Launch(_experts(problem), ("indptr", "experts"), "s_tir")
        if problem.activation is None:
            matmul = Launch(_matmul(problem), (*operands, "out"), "s_tir")
            return CudaKernel(self.name, (find, matmul), (experts,))
        # A gate and its up are elements of two threads here, so they meet in memory
        products = replace(problem, activation=None, out_dtype="float32")
        launches = (
            find,
            Launch(_matmul(products), (*operands, "products"), "s_tir"),
            Launch(activation_function(problem), ("products", "out"), "s_tir"),
        )
        sums = Workspace("products", "float32", lambda M: (M, problem.N))
        return CudaKernel(self.name, launches, (experts, sums))


def _experts(problem: GroupedProblem) -> PrimFunc:
    M = tirx.Var("M", "int64")
    shape, dtype = problem.operands(M)["indptr"]
    indptr = te.placeholder(shape, dtype, "indptr")
    sch = s_tir.Schedule(te.create_prim_func([indptr, te_experts(problem, indptr, M)]))
    (m, *_) = sch.get_loops(sch.get_sblock("experts"))
    block, thread = sch.split(m, [None, THREADS])
    sch.bind(block, "blockIdx.x")
    sch.bind(thread, "threadIdx.x")
    return sch.mod["main"]


def _matmul(problem: GroupedProblem) -> PrimFunc:
    M = tirx.Var("M", "int64")
    names = ("x", "words", "scales", "global_scale")
    shapes = problem.operands(M)
    tensors = {name: te.placeholder(*shapes[name], name) for name in names}
    experts = te.placeholder((M,), "int32", "experts")
    out = te_products(problem, tensors, experts, M)
    sch = s_tir.Schedule(te.create_prim_func([*tensors.values(), experts, out]))
    matmul, epilogue = sch.get_sblock("matmul"), sch.get_sblock("epilogue")
    m, n, _ = sch.get_loops(matmul)
    n_outer, n_inner = sch.split(n, [None, THREADS])
    sch.bind(m, "blockIdx.x")
    sch.bind(n_outer, "blockIdx.y")
    sch.bind(n_inner, "threadIdx.x")
    sch.set_scope(matmul, 0, "local")
    sch.reverse_compute_at(epilogue, n_inner)
    return sch.mod["main"]
