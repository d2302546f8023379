"""LowerDense: plain linear layers on llvm targets, ``matmul(x, permute_dims(w))``, become scheduled PrimFuncs.

Checkpoints leave the head and some layers unquantized. On CUDA, TVM's passes fuse the transpose and dlight
schedules the product; on the CPU neither happens, so this pass calls :mod:`nvfp4_tvm.schedules.cpu_dense`.
"""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator
from tvm.target import Target

from nvfp4_tvm.op.matmul import flatten, unflatten
from nvfp4_tvm.passes.lower_matmul import OPAQUE
from nvfp4_tvm.passes.rewrite_matmul import is_call
from nvfp4_tvm.schedules.base import ACTIVATION_DTYPES
from nvfp4_tvm.schedules.cpu_dense import DenseProblem, dense


@mutator
class _Lowerer(PyExprMutator):
    def __init__(self, mod: tvm.IRModule, target: Target) -> None:
        super().__init__(mod)
        self.target = target
        self.kernels: dict[DenseProblem, tvm.ir.GlobalVar] = {}

    def kernel(self, problem: DenseProblem) -> tvm.ir.GlobalVar:
        """Return the kernel of ``problem``, adding it to the module on first use."""
        if problem not in self.kernels:
            function = dense(problem, self.target).with_attr("op_pattern", OPAQUE)
            name = f"dense_{problem.N}x{problem.K}"
            self.kernels[problem] = self.builder_.add_func(function.without_attr("global_symbol"), name)
        return self.kernels[problem]

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = super().visit_call_(call)
        weight = self._transposed(call.args[1]) if is_call(call, "relax.matmul") else None
        if weight is None or not self._fits(call.args[0], weight):
            return call
        N, K = (int(extent) for extent in weight.ty.shape)
        rows, leading = flatten(self.builder_, call.args[0])
        problem = DenseProblem(N, K, str(weight.ty.dtype), str(call.ty.dtype))
        out = relax.call_tir(
            self.kernel(problem),
            [rows, weight],
            relax.TensorType((rows.ty.shape[0], N), problem.out_dtype),
        )
        return unflatten(self.builder_.emit(out), leading, N) if leading is not None else out

    def _transposed(self, expr: relax.Expr) -> relax.Expr | None:
        """Return what ``expr`` is the transpose of, if it is a matrix of constant shape."""
        value = self.lookup_binding(expr) if isinstance(expr, relax.Var) else expr
        if value is None or not is_call(value, "relax.permute_dims"):
            return None
        matrix, axes = value.args[0], value.attrs.axes
        swapped = axes is None or [int(axis) for axis in axes] == [1, 0]
        ty = matrix.ty
        if not swapped or ty.ndim != 2 or not all(isinstance(e, tvm.tirx.IntImm) for e in ty.shape):
            return None
        return matrix

    @staticmethod
    def _fits(x: relax.Expr, weight: relax.Expr) -> bool:
        dtype = str(weight.ty.dtype)
        return dtype in ACTIVATION_DTYPES and str(x.ty.dtype) == dtype and x.ty.ndim >= 1


@tvm.transform.module_pass(opt_level=0, name="LowerDense")
class LowerDense:
    """Lower plain linear layers for ``target``, or the current one; on anything but llvm it does nothing."""

    def __init__(self, target: Target | None = None) -> None:
        self.target = target

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply to every Relax function."""
        target = self.target or Target.current(allow_none=False)
        if target.kind.name != "llvm":
            return mod
        lowerer = _Lowerer(mod, target)
        for gvar, function in mod.functions_items():
            if isinstance(function, relax.Function):
                lowered = relax.analysis.remove_all_unused(lowerer.visit_expr(function))
                lowerer.builder_.update_func(gvar, lowered)
        return lowerer.builder_.get()
