"""RewriteNVFP4Matmul: matmuls on dequantized weights become ``nvfp4.matmul`` on ``nvfp4.pack``.

What is matched, for any leading dimensions of x, static or symbolic::

    matmul(x, permute_dims(dequantize(codes, scales, global_scale)))        optionally with astype in between,
    add(matmul(...), bias)                                                  out_dtype, and a bias [N]

The bias is fused only if the product has no other use. Every other use of ``dequantize`` of a weight that some
matmul of the module packs (an embedding lookup on a tied table) reads the packed weight too: otherwise two
copies of the weight would be live. A ``take`` along N of such a weight becomes a gather of rows.
"""

from __future__ import annotations

from collections.abc import Callable

import tvm
import tvm_ffi
from tvm import relax
from tvm.ir import Op
from tvm.relax.expr_functor import PyExprMutator, PyExprVisitor, mutator, visitor

from nvfp4_tvm import op
from nvfp4_tvm.op.dequantize import NAME as DEQUANTIZE
from nvfp4_tvm.op.matmul import NAME as MATMUL
from nvfp4_tvm.schedules.base import ACTIVATION_DTYPES

Lookup = Callable[[relax.Expr], relax.Expr]
WeightKey = tuple[str | int, ...]


def is_call(expr: relax.Expr, name: str) -> bool:
    """Whether ``expr`` is a call of the operator ``name``."""
    return isinstance(expr, relax.Call) and isinstance(expr.op, Op) and expr.op.name == name


def dequantized_operand(rhs: relax.Expr, lookup: Lookup) -> relax.Call | None:
    """Return the ``nvfp4.dequantize`` call that ``rhs`` is the transpose of, or None."""
    expr = lookup(rhs)
    transposed = False
    while True:
        if is_call(expr, "relax.permute_dims"):
            axes = expr.attrs.axes
            if axes is not None and [int(axis) for axis in axes] != [1, 0]:
                return None
            transposed = not transposed
        elif not is_call(expr, "relax.astype"):
            break
        expr = lookup(expr.args[0])
    return expr if transposed and is_call(expr, DEQUANTIZE) else None


@visitor
class _Uses(PyExprVisitor):
    """Counts uses of variables and collects the weights that matmuls of one function use."""

    def __init__(self, function: relax.Function) -> None:
        super().__init__()
        self.bindings: dict[relax.Var, relax.Expr] = {}
        self.count: dict[relax.Var, int] = {}
        self.packed: set[WeightKey] = set()
        num_input = (function.attrs or {}).get("num_input")
        self.weights = set() if num_input is None else set(function.params[int(num_input) :])

    def key(self, dequantize: relax.Call) -> WeightKey:
        """Identity of a weight: by name where it is a weight parameter, which functions share, else by object."""
        return tuple(
            operand.name if operand in self.weights else hash(self.lookup(operand))
            for operand in dequantize.args
        )

    def lookup(self, expr: relax.Expr) -> relax.Expr:
        while isinstance(expr, relax.Var) and expr in self.bindings:
            expr = self.bindings[expr]
        return expr

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        self.bindings[binding.var] = binding.value
        self.visit_expr(binding.value)
        call = binding.value
        if is_call(call, "relax.matmul"):
            dequantize = dequantized_operand(call.args[1], self.lookup)
            if dequantize is not None:
                self.packed.add(self.key(dequantize))

    def visit_var_(self, var: relax.Var) -> None:
        self.count[var] = self.count.get(var, 0) + 1

    def visit_dataflow_var_(self, var: relax.DataflowVar) -> None:
        self.visit_var_(var)


def _uses(function: relax.Function) -> _Uses:
    uses = _Uses(function)
    uses.visit_expr(function)  # not in __init__: the visitor decorator completes the object after it
    return uses


@mutator
class _Rewriter(PyExprMutator):
    def __init__(self, mod: tvm.IRModule, uses: _Uses, packed: set[WeightKey]) -> None:
        super().__init__(mod)
        self.uses = uses
        self.packed = packed
        self.products: dict[relax.Var, relax.Call] = {}

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        super().visit_var_binding_(binding)
        value = self.lookup_binding(self.visit_expr(binding.var))
        if value is not None and is_call(value, MATMUL):
            self.products[binding.var] = value

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        for rewrite in (self._matmul, self._bias, self._take, self._other_use):
            new = rewrite(call)
            if new is not None:
                return new
        return super().visit_call_(call)

    def _pack(self, dequantize: relax.Call) -> tuple[relax.Expr, relax.Expr, relax.Expr]:
        packed = self.builder_.emit(op.pack(*(self.visit_expr(argument) for argument in dequantize.args)))
        words, scales, rows = (self.builder_.emit(relax.TupleGetItem(packed, i)) for i in range(3))
        return words, scales, rows

    def _matmul(self, call: relax.Call) -> relax.Expr | None:
        if not is_call(call, "relax.matmul"):
            return None
        dequantize = dequantized_operand(call.args[1], self.uses.lookup)
        x = call.args[0]
        if dequantize is None or x.ty.ndim < 1 or str(x.ty.dtype) not in ACTIVATION_DTYPES:
            return None
        N = int(dequantize.args[0].ty.shape[0])
        return op.matmul(self.visit_expr(x), *self._pack(dequantize), N=N, out_dtype=str(call.ty.dtype))

    def _bias(self, call: relax.Call) -> relax.Expr | None:
        if not is_call(call, "relax.add"):
            return None
        for product_var, bias in ((call.args[0], call.args[1]), (call.args[1], call.args[0])):
            product = self.products.get(product_var) if isinstance(product_var, relax.Var) else None
            if product is None or self.uses.count.get(product_var) != 1 or len(product.args) != 4:
                continue
            N = int(product.attrs["N"])
            x_dtype = str(product.args[0].ty.dtype)
            fits = tvm_ffi.structural_equal(bias.ty, relax.TensorType((N,), x_dtype))
            if fits and str(call.ty.dtype) == str(product.attrs["out_dtype"]):
                x, words, scales, rows = product.args
                out_dtype = str(product.attrs["out_dtype"])
                return op.matmul(x, words, scales, rows, self.visit_expr(bias), N=N, out_dtype=out_dtype)
        return None

    def _take(self, call: relax.Call) -> relax.Expr | None:
        if not is_call(call, "relax.take") or call.attrs.axis is None or int(call.attrs.axis) != 0:
            return None
        if call.attrs.mode not in ("fast", "clip"):  # "fast" leaves indices outside undefined
            return None
        dequantize = self.uses.lookup(call.args[0])
        if not is_call(dequantize, DEQUANTIZE) or self.uses.key(dequantize) not in self.packed:
            return None
        N, K = (int(extent) for extent in dequantize.ty.shape)
        return op.take(
            *self._pack(dequantize),
            self.visit_expr(call.args[1]),
            N=N,
            K=K,
            out_dtype=str(dequantize.attrs["out_dtype"]),
        )

    def _other_use(self, call: relax.Call) -> relax.Expr | None:
        if not is_call(call, DEQUANTIZE) or self.uses.key(call) not in self.packed:
            return None
        N, K = (int(extent) for extent in call.ty.shape)
        return op.dequantize_packed(*self._pack(call), N=N, K=K, out_dtype=str(call.attrs["out_dtype"]))


@tvm.transform.module_pass(opt_level=0, name="RewriteNVFP4Matmul")
class RewriteNVFP4Matmul:
    """Rewrite matmuls on dequantized NVFP4 weights to ``nvfp4.matmul``; the rest of the module is untouched.

    Equal ``nvfp4.pack`` calls of a function are merged, and what nothing uses any more is removed.
    """

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply to every Relax function."""
        uses = {
            gvar: _uses(function)
            for gvar, function in mod.functions_items()
            if isinstance(function, relax.Function)
        }
        packed = set().union(*(function_uses.packed for function_uses in uses.values()))
        if not packed:
            return mod
        mod = mod.clone()
        for gvar, function_uses in uses.items():
            mod.update_func(gvar, _Rewriter(mod, function_uses, packed).visit_expr(mod[gvar]))
        mod = relax.transform.EliminateCommonSubexpr()(mod)
        for gvar in uses:
            mod.update_func(gvar, relax.analysis.remove_all_unused(mod[gvar]))
        return mod
