"""SumInFloat32: what no kernel of this project multiplies is summed in float32 all the same.

Checkpoints leave the head and some layers unquantized. ``relax.matmul`` of 16-bit operands legalizes to a loop
that adds up in the type of its result; bfloat16 has 8 bits, so that a sum of a few thousand products loses what
tensor cores, cuBLAS and PyTorch keep. Here such a product is asked for in float32, and rounded once. Passes after
this one fuse the rounding into whatever multiplies.
"""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from nvfp4_tvm.passes.rewrite_matmul import is_call
from nvfp4_tvm.schedules.base import ACTIVATION_DTYPES

#: Results that hold fewer bits than a sum needs.
_NARROW = frozenset(ACTIVATION_DTYPES) - {"float32"}


@mutator
class _Widener(PyExprMutator):
    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = super().visit_call_(call)
        if not is_call(call, "relax.matmul"):
            return call
        dtype = str(self.builder_.normalize(call).ty.dtype)
        if dtype not in _NARROW:
            return call
        wide = self.builder_.emit(relax.op.matmul(*call.args, out_dtype="float32"))
        return relax.op.astype(wide, dtype)


@tvm.transform.module_pass(opt_level=0, name="SumInFloat32")
class SumInFloat32:
    """Give every ``relax.matmul`` with a 16-bit result a sum in float32, which is then rounded.

    To run after a dispatch to libraries, which sum in float32 by themselves and may not know a matmul that is
    followed by a cast.
    """

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply to every Relax function."""
        widener = _Widener(mod)
        for gvar, function in mod.functions_items():
            if isinstance(function, relax.Function):
                widener.builder_.update_func(gvar, widener.visit_expr(function))
        return widener.builder_.get()
