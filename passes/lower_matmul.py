"""LowerNVFP4Matmul: ``nvfp4.matmul`` becomes a call of a scheduled PrimFunc chosen by target, N, K and M.

Activations [..., K] are flattened to [M, K]; where M is symbolic the PrimFunc branches on it
(:mod:`nvfp4_tvm.schedules.dispatch`). Calls that pose the same problem share one PrimFunc.
"""

from __future__ import annotations

import tvm
from tvm import relax, tirx
from tvm.relax.expr_functor import PyExprMutator, mutator
from tvm.target import Target

from nvfp4_tvm.op.matmul import NAME as MATMUL
from nvfp4_tvm.op.matmul import flatten, unflatten
from nvfp4_tvm.passes.rewrite_matmul import is_call
from nvfp4_tvm.schedules.base import MatmulProblem, MRange
from nvfp4_tvm.schedules.dispatch import dispatch

#: relax.op pattern kind kOpaque (include/tvm/relax/op_attr_types.h): FuseOps must not touch a scheduled kernel.
OPAQUE = 8


@mutator
class _Lowerer(PyExprMutator):
    def __init__(self, mod: tvm.IRModule, target: Target) -> None:
        super().__init__(mod)
        self.target = target
        self.kernels: dict[MatmulProblem, tvm.ir.GlobalVar] = {}

    def kernel(self, problem: MatmulProblem) -> tvm.ir.GlobalVar:
        """Return the kernel of ``problem``, adding it to the module on first use."""
        if problem not in self.kernels:
            function = dispatch(problem, self.target).with_attrs(
                {"tirx.is_scheduled": 1, "tirx.noalias": True, "op_pattern": OPAQUE}
            )
            if "global_symbol" in (function.attrs or {}):
                function = function.without_attr("global_symbol")
            name = f"nvfp4_matmul_{problem.N}x{problem.K}"
            self.kernels[problem] = self.builder_.add_func(function, name)
        return self.kernels[problem]

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = super().visit_call_(call)
        if not is_call(call, MATMUL):
            return call
        rows, leading = flatten(self.builder_, call.args[0])
        M, K = rows.ty.shape
        N = int(call.attrs["N"])
        problem = MatmulProblem(
            N,
            int(K),
            MRange(int(M), int(M)) if isinstance(M, tirx.IntImm) else MRange(),
            str(rows.ty.dtype),
            str(call.attrs["out_dtype"]),
            bias=len(call.args) == 5,
        )
        out = relax.call_tir(
            self.kernel(problem), [rows, *call.args[1:]], relax.TensorType((M, N), problem.out_dtype)
        )
        return unflatten(self.builder_.emit(out), leading, N) if leading is not None else out


@tvm.transform.module_pass(opt_level=0, name="LowerNVFP4Matmul")
class LowerNVFP4Matmul:
    """Lower ``nvfp4.matmul`` for ``target``, or for the current target if it is None.

    Raises
    ------
    TargetError
        If there are no kernels for the target.
    """

    def __init__(self, target: Target | None = None) -> None:
        self.target = target

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply to every Relax function."""
        lowerer = _Lowerer(mod, self.target or Target.current(allow_none=False))
        for gvar, function in mod.functions_items():
            if isinstance(function, relax.Function):
                lowerer.builder_.update_func(gvar, lowerer.visit_expr(function))
        return lowerer.builder_.get()
