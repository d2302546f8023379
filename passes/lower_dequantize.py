"""LowerNVFP4Dequantize: ``nvfp4.dequantize_packed`` on CUDA becomes a call of a compiled kernel.

The kernel is machine code in the module attribute ``external_mods``, as those of LowerNVFP4Matmul. Other targets
keep the operator, whose legalization serves them.
"""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator
from tvm.target import Target

from nvfp4_tvm.codegen.dequantize import build_dequantize
from nvfp4_tvm.codegen.machine_code import BuildLog
from nvfp4_tvm.codegen.single import BuiltLaunch
from nvfp4_tvm.op.dequantize import PACKED_NAME
from nvfp4_tvm.passes.external import attach
from nvfp4_tvm.passes.rewrite_matmul import is_call


@mutator
class _Lowerer(PyExprMutator):
    def __init__(self, mod: tvm.IRModule, target: Target, log: BuildLog) -> None:
        super().__init__(mod)
        self.target, self.log = target, log
        self.built: dict[str, BuiltLaunch] = {}

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = super().visit_call_(call)
        if not is_call(call, PACKED_NAME):
            return call
        N, K = int(call.attrs["N"]), int(call.attrs["K"])
        built = build_dequantize(N, K, str(call.attrs["out_dtype"]), self.target)
        if built.name not in self.built:
            self.built[built.name] = built
            self.log.modules.extend(built.log.modules)
        return relax.op.call_dps_packed(built.name, list(call.args), call.ty)


@tvm.transform.module_pass(opt_level=0, name="LowerNVFP4Dequantize")
class LowerNVFP4Dequantize:
    """Lower ``nvfp4.dequantize_packed`` for a CUDA ``target``, or for the current target if it is None.

    Resources of the kernels are appended to ``log`` if there is one.
    """

    def __init__(self, target: Target | None = None, log: BuildLog | None = None) -> None:
        self.target = target
        self.log = BuildLog() if log is None else log

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply to every Relax function."""
        target = self.target or Target.current(allow_none=False)
        if target.kind.name != "cuda":
            return mod
        lowerer = _Lowerer(mod, target, self.log)
        for gvar, function in mod.functions_items():
            if isinstance(function, relax.Function):
                lowerer.builder_.update_func(gvar, lowerer.visit_expr(function))
        return attach(lowerer.builder_.get(), ((name, built.module) for name, built in lowerer.built.items()))
