"""FuseNVFP4Epilogue: what follows ``nvfp4.matmul`` element by element becomes part of it.

For products p without another use::

    astype(p, dtype)                       out_dtype
    add(p, r), r of the shape and dtype    residual
    multiply(silu(gate), up)               activation "silu_mul", where gate and up are the halves of p
                                           (split or strided_slice along the last axis, astype anywhere)

A fused product is rounded once, at the end, where the operators would have rounded p, and each step in 16 bits,
too: results differ in the last bits from those of the unfused module, and are closer to the exact ones.

``silu_mul`` wants the rows of gate and up interleaved in eights. The operands of the weight's ``nvfp4.pack`` are
permuted for that, so FoldNVFP4Weights, which must come after, does it once and for all. It happens only if every
use of the weight in the module is such a product; the weight's other layout would be needed as well otherwise.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np
import tvm
import tvm_ffi
from tvm import relax, tirx
from tvm.relax.expr_functor import PyExprMutator, PyExprVisitor, mutator, visitor
from tvm.target import Target

from nvfp4_tvm import layout, op
from nvfp4_tvm.op.matmul import NAME as MATMUL
from nvfp4_tvm.op.matmul import operands
from nvfp4_tvm.op.pack import NAME as PACK
from nvfp4_tvm.passes.rewrite_matmul import is_call
from nvfp4_tvm.schedules.base import ACTIVATION_DTYPES

logger = logging.getLogger(__name__)

#: Rows of gate, then as many of up, in a tile: the two row halves of an mma fragment.
HALF_TILE = layout.TILE_N // 2


@visitor
class _Function(PyExprVisitor):
    """The bindings of one function, how often each variable is used, and the uses of packed weights."""

    def __init__(self, function: relax.Function) -> None:
        super().__init__()
        self.bindings: dict[relax.Var, relax.Expr] = {}
        self.count: dict[relax.Var, int] = {}
        num_input = (function.attrs or {}).get("num_input")
        self.weights = set() if num_input is None else set(function.params[int(num_input) :])

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        self.bindings[binding.var] = binding.value
        self.visit_expr(binding.value)

    def visit_var_(self, var: relax.Var) -> None:
        self.count[var] = self.count.get(var, 0) + 1

    def visit_dataflow_var_(self, var: relax.DataflowVar) -> None:
        self.visit_var_(var)

    def lookup(self, expr: relax.Expr) -> relax.Expr:
        """Return what a variable is bound to."""
        while isinstance(expr, relax.Var) and expr in self.bindings:
            expr = self.bindings[expr]
        return expr

    def once(self, expr: relax.Expr) -> bool:
        """Whether ``expr`` is a variable with one use."""
        return isinstance(expr, relax.Var) and self.count.get(expr) == 1

    def key(self, pack: relax.Call) -> Hashable:
        """Identity of a packed weight: by name where it is a weight parameter, which functions share."""
        found: list[Hashable] = []

        def visit(expr: relax.Expr) -> None:
            expr = self.lookup(expr)
            if isinstance(expr, relax.Call):
                found.append(str(expr.op))
                for argument in expr.args:
                    visit(argument)
            else:
                found.append(expr.name if expr in self.weights else hash(expr))

        for argument in pack.args:
            visit(argument)
        return tuple(found)

    def pack_of(self, product: relax.Call) -> relax.Call | None:
        """Return the pack whose three fields are the weight of a product, or None."""
        fields = [self.lookup(argument) for argument in product.args[1:4]]
        if not all(isinstance(field, relax.TupleGetItem) for field in fields):
            return None
        packs = [self.lookup(field.tuple_value) for field in fields]
        same = all(pack.same_as(packs[0]) for pack in packs) and [field.index for field in fields] == [
            0,
            1,
            2,
        ]
        return packs[0] if same and is_call(packs[0], PACK) else None


@dataclass
class _Gated:
    """``silu(gate) * up`` of one product: the variable it is bound to and the product."""

    product: relax.Call
    key: Hashable


@dataclass
class _Plan:
    """What to do in one function."""

    function: _Function
    gated: dict[relax.Var, _Gated] = field(default_factory=dict)


def _skip_casts(function: _Function, expr: relax.Expr) -> relax.Expr | None:
    """Follow casts between floating-point types, each used once; None if something else uses a step."""
    while function.once(expr) and is_call(function.lookup(expr), "relax.astype"):
        if str(function.lookup(expr).ty.dtype) not in ACTIVATION_DTYPES:
            return None
        expr = function.lookup(expr).args[0]
    return expr if function.once(expr) else None


def _half(function: _Function, expr: relax.Expr) -> tuple[relax.Var, int] | None:
    """Return (product, 0 for its first or 1 for its second half) if ``expr`` is a half of the last axis."""
    bare = _skip_casts(function, expr)
    value = None if bare is None else function.lookup(bare)
    if value is None:
        return None
    if isinstance(value, relax.TupleGetItem):
        split = function.lookup(value.tuple_value)
        if not is_call(split, "relax.split") or not isinstance(split.args[0], relax.Var):
            return None
        product, last = split.args[0], split.args[0].ty.ndim - 1
        N = split.args[0].ty.shape[-1]
        sections = split.attrs.indices_or_sections
        parts = [int(sections)] if isinstance(sections, int | tirx.IntImm) else [int(at) for at in sections]
        halves = (
            parts == [2] if isinstance(sections, int | tirx.IntImm) else [2 * at for at in parts] == [int(N)]
        )
        if int(split.attrs.axis) % (last + 1) != last or not halves or function.count.get(product) != 1:
            return None
        return product, int(value.index)
    if is_call(value, "relax.strided_slice"):
        product = value.args[0]
        if not isinstance(product, relax.Var) or function.count.get(product) != 2:
            return None
        N, last = int(product.ty.shape[-1]), product.ty.ndim - 1
        axes, begin, end = (_constants(argument) for argument in value.args[1:4])
        strides = [1] if len(value.args) < 5 else _constants(value.args[4])
        if axes is None or [axis % (last + 1) for axis in axes] != [last] or strides != [1]:
            return None
        for half in (0, 1):
            if begin == [half * N // 2] and end is not None and min(end[0], N) == (half + 1) * N // 2:
                return product, half
    return None


def _constants(expr: relax.Expr) -> list[int] | None:
    """Return the integers of a tuple of constants."""
    values = [getattr(field, "value", field) for field in getattr(expr, "fields", [])]
    if not values or any(not isinstance(value, int | tirx.IntImm) for value in values):
        return None
    return [int(value) for value in values]


def _gated(function: _Function, call: relax.Call) -> _Gated | None:
    """Return the product that ``call`` gates, if it may be fused as far as its own function goes."""
    if not is_call(call, "relax.multiply"):
        return None
    for gate, up in ((call.args[0], call.args[1]), (call.args[1], call.args[0])):
        inner = _skip_casts(function, gate)
        silu = None if inner is None else function.lookup(inner)
        if silu is None or not is_call(silu, "relax.nn.silu"):
            continue
        first, second = _half(function, silu.args[0]), _half(function, up)
        if first is None or second is None or not first[0].same_as(second[0]):
            return None
        product = function.lookup(first[0])
        if (first[1], second[1]) != (0, 1) or not is_call(product, MATMUL):
            return None
        names = operands(product)
        pack = function.pack_of(product)
        plain = "bias" not in names and "residual" not in names and not str(product.attrs["activation"])
        if pack is None or not plain or int(product.attrs["N"]) % layout.TILE_N:
            return None
        return _Gated(product, function.key(pack))
    return None


def _plan(functions: dict[tvm.ir.GlobalVar, relax.Function]) -> dict[tvm.ir.GlobalVar, _Plan]:
    """Decide which products are gated: those of weights that all functions use in no other way."""
    plans = {}
    packs: dict[Hashable, int] = {}
    for gvar, relax_function in functions.items():
        function = _Function(relax_function)
        function.visit_expr(relax_function)
        plan = plans[gvar] = _Plan(function)
        uses: dict[Hashable, int] = {}
        for var, value in function.bindings.items():
            if is_call(value, PACK):
                uses[function.key(value)] = uses.get(function.key(value), 0) + _field_uses(function, var)
            elif isinstance(value, relax.Call):
                gated = _gated(function, value)
                if gated is not None:
                    plan.gated[var] = gated
        for gated in plan.gated.values():
            uses[gated.key] = uses.get(gated.key, 0) - 3  # the product's words, scales and global scale
        for key, left in uses.items():
            packs[key] = packs.get(key, 0) + left
    for plan in plans.values():
        plan.gated = {var: gated for var, gated in plan.gated.items() if packs.get(gated.key) == 0}
    return plans


def _field_uses(function: _Function, pack: relax.Var) -> int:
    """Uses of the three parts of a pack; a use of the tuple itself counts as one that cannot be fused."""
    parts = [
        var
        for var, value in function.bindings.items()
        if isinstance(value, relax.TupleGetItem)
        and isinstance(value.tuple_value, relax.Var)
        and value.tuple_value.same_as(pack)
    ]
    return sum(function.count.get(part, 0) for part in parts) + function.count.get(pack, 0) - len(parts)


def interleaved(N: int, rows: np.ndarray) -> np.ndarray:
    """Interleave the first N/2 rows, gate, with the others, up, in eights."""
    if rows.ndim == 0 or rows.shape[0] != N:
        return rows  # one global scale for all
    halves = rows.reshape(2, N // layout.TILE_N, HALF_TILE, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(0, 1)).reshape(rows.shape)


@mutator
class _Fuser(PyExprMutator):
    def __init__(self, mod: tvm.IRModule, plan: _Plan) -> None:
        super().__init__(mod)
        self.plan = plan
        self.function = plan.function
        self.keys = {gated.key for gated in plan.gated.values()}
        self.fused: dict[relax.Var, relax.Call] = {}
        self.var: relax.Var | None = None

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        self.var = binding.var
        super().visit_var_binding_(binding)
        value = self.lookup_binding(self.visit_expr(binding.var))
        if value is not None and is_call(value, MATMUL):
            self.fused[binding.var] = value

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        for rewrite in (self._pack, self._silu_mul, self._cast, self._residual):
            new = rewrite(call)
            if new is not None:
                return new
        return super().visit_call_(call)

    def _pack(self, call: relax.Call) -> relax.Expr | None:
        if not is_call(call, PACK) or self.function.key(call) not in self.keys:
            return None
        N = int(call.args[0].ty.shape[0])
        return op.pack(*(self._interleaved(N, argument) for argument in call.args))

    def _interleaved(self, N: int, argument: relax.Expr) -> relax.Expr:
        shape = [int(extent) for extent in argument.ty.shape]
        if not shape or shape[0] != N:
            return self.visit_expr(argument)
        value = self.function.lookup(argument)
        if isinstance(value, tvm.ir.GenericConst):
            return relax.const(interleaved(N, value.value.numpy()))
        rest = shape[1:]
        halves = relax.op.reshape(self.visit_expr(argument), (2, N // layout.TILE_N, HALF_TILE, *rest))
        axes = [1, 0, *range(2, len(rest) + 3)]
        tiles = self.builder_.emit(relax.op.permute_dims(self.builder_.emit(halves), axes))
        return self.builder_.emit(relax.op.reshape(tiles, shape))

    def _silu_mul(self, call: relax.Call) -> relax.Expr | None:
        gated = None if self.var is None else self.plan.gated.get(self.var)
        if gated is None or not self.function.bindings[self.var].same_as(call):
            return None
        names = {name: self.visit_expr(value) for name, value in operands(gated.product).items()}
        N = int(gated.product.attrs["N"])
        return op.matmul(**names, N=N, out_dtype=str(call.ty.dtype), activation="silu_mul")

    def _product(self, expr: relax.Expr) -> relax.Call | None:
        """Return the product that ``expr`` is, if nothing else uses it."""
        return self.fused.get(expr) if self.function.once(expr) else None

    def _cast(self, call: relax.Call) -> relax.Expr | None:
        product = self._product(call.args[0]) if is_call(call, "relax.astype") else None
        if product is None or str(call.ty.dtype) not in ACTIVATION_DTYPES or bool(product.attrs["residual"]):
            return None
        return _again(product, out_dtype=str(call.ty.dtype))

    def _residual(self, call: relax.Call) -> relax.Expr | None:
        if not is_call(call, "relax.add"):
            return None
        for expr, residual in ((call.args[0], call.args[1]), (call.args[1], call.args[0])):
            product = self._product(expr)
            if product is None or bool(product.attrs["residual"]):
                continue
            if tvm_ffi.structural_equal(residual.ty, call.ty) and tvm_ffi.structural_equal(expr.ty, call.ty):
                return _again(product, residual=self.visit_expr(residual))
        return None


def _again(
    product: relax.Call, residual: relax.Expr | None = None, out_dtype: str | None = None
) -> relax.Call:
    names = operands(product)
    if residual is not None:
        names["residual"] = residual
    return op.matmul(
        **names,
        N=int(product.attrs["N"]),
        out_dtype=out_dtype or str(product.attrs["out_dtype"]),
        activation=str(product.attrs["activation"]) or None,
    )


@tvm.transform.module_pass(opt_level=0, name="FuseNVFP4Epilogue")
class FuseNVFP4Epilogue:
    """Fuse casts, residuals and SiLU(gate) x up into ``nvfp4.matmul`` on CUDA; other targets keep their module.

    Comes after RewriteNVFP4Matmul, and before FoldNVFP4Weights where ``silu_mul`` is to be found.
    """

    def __init__(self, target: Target | None = None) -> None:
        self.target = target

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply to every Relax function."""
        target = self.target or Target.current(allow_none=False)
        if target.kind.name != "cuda":
            return mod
        functions = {
            gvar: function for gvar, function in mod.functions_items() if isinstance(function, relax.Function)
        }
        mod = mod.clone()
        for gvar, plan in _plan(functions).items():
            function = _Fuser(mod, plan).visit_expr(mod[gvar])
            mod.update_func(gvar, relax.analysis.remove_all_unused(function))
        return mod
