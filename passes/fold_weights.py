"""FoldNVFP4Weights: pack weights once, at compile time or in a transform function, never in the model.

Constants are packed here and now. Weights that are parameters (what follows the ``num_input`` inputs of a
function) are lifted: the module gets a function ``transform_params(tuple of canonical parameters) -> tuple
of packed parameters`` to run once, as ``relax.transform.LiftTransformParams`` does, and every model function takes
the packed parameters instead. Only the packing is lifted, with whatever it needs: a plain weight keeps its
layout and its name. A weight ``X.codes, X.scales, X.global_scale`` becomes ``X.packed.words``,
``X.packed.scales``, ``X.packed.global_scale`` in its place.
"""

from __future__ import annotations

import logging

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from nvfp4_tvm import layout
from nvfp4_tvm.errors import NVFP4Error
from nvfp4_tvm.op.pack import NAME as PACK
from nvfp4_tvm.passes.rewrite_matmul import is_call

logger = logging.getLogger(__name__)

TRANSFORM = "transform_params"
PACKED_FIELDS = ("words", "scales", "global_scale")


def packed_names(weight: str) -> list[str]:
    """Names of the three packed parameters of a weight (of any of its canonical parameters)."""
    prefix = weight.removesuffix(".codes")
    return [f"{prefix}.packed.{field}" for field in PACKED_FIELDS]


def _bindings(function: relax.Function) -> dict[relax.Var, relax.Expr]:
    return {
        binding.var: binding.value
        for block in function.body.blocks
        for binding in block.bindings
        if isinstance(binding, relax.VarBinding)
    }


def _is_constant(expr: relax.Expr) -> bool:
    return isinstance(expr, tvm.ir.GenericConst)


class _Weights:
    """The weight parameters of one function and the packs that depend on nothing else."""

    def __init__(self, function: relax.Function) -> None:
        attrs = function.attrs or {}
        self.num_input = int(attrs["num_input"]) if "num_input" in attrs else len(function.params)
        self.params: list[relax.Var] = list(function.params)[self.num_input :]
        self.bindings = _bindings(function)
        self.packs: dict[relax.Var, relax.Call] = {
            var: value for var, value in self.bindings.items() if is_call(value, PACK)
        }

    def leaves(self, expr: relax.Expr) -> list[relax.Var]:
        """Variables not bound in the function that ``expr`` depends on, in order, without repetition."""
        found: dict[relax.Var, None] = {}

        def visit(node: relax.Expr) -> None:
            if isinstance(node, relax.Var):
                if node in self.bindings:
                    visit(self.bindings[node])
                else:
                    found[node] = None
            elif isinstance(node, relax.Call):
                for argument in node.args:
                    visit(argument)
            elif isinstance(node, relax.Tuple):
                for field in node.fields:
                    visit(field)
            elif isinstance(node, relax.TupleGetItem):
                visit(node.tuple_value)

        visit(expr)
        return list(found)

    def constant(self, pack: relax.Call) -> bool:
        """Whether all operands of ``pack`` are constants."""
        return all(_is_constant(self.resolve(argument)) for argument in pack.args)

    def resolve(self, expr: relax.Expr) -> relax.Expr:
        """Follow variables to what they are bound to."""
        while isinstance(expr, relax.Var) and expr in self.bindings:
            expr = self.bindings[expr]
        return expr

    def lifted(self, pack: relax.Call) -> str | None:
        """Name of the weight if ``pack`` depends on weight parameters only, else None."""
        leaves = self.leaves(pack)
        if leaves and all(leaf in self.params for leaf in leaves):
            return leaves[0].name
        return None

    def signature(self, expr: relax.Expr) -> str:
        """Return what ``expr`` computes from the weight parameters, the same text in every function."""
        expr = self.resolve(expr)
        if isinstance(expr, relax.Call):
            arguments = ", ".join(self.signature(argument) for argument in expr.args)
            return f"{expr.op}({arguments}){expr.attrs}"
        if isinstance(expr, relax.Tuple):
            return f"({', '.join(self.signature(field) for field in expr.fields)})"
        if isinstance(expr, relax.TupleGetItem):
            return f"{self.signature(expr.tuple_value)}[{expr.index}]"
        return expr.name if isinstance(expr, relax.Var) else str(expr)


def _pack_constants(weights: _Weights, pack: relax.Call) -> relax.Tuple:
    codes, scales, global_scale = (weights.resolve(argument).value.numpy() for argument in pack.args)
    packed = layout.pack(codes, scales, global_scale)
    return relax.Tuple([relax.const(getattr(packed, field)) for field in PACKED_FIELDS])


@mutator
class _Folder(PyExprMutator):
    """Replaces folded packs by a tuple of constants or of new parameters."""

    def __init__(self, mod: tvm.IRModule, replacement: dict[relax.Var, relax.Tuple]) -> None:
        super().__init__(mod)
        self.replacement = replacement

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        if binding.var in self.replacement:
            self.set_var_remap(binding.var, self.builder_.emit(self.replacement[binding.var]))
        else:
            super().visit_var_binding_(binding)


def _transform_function(model: _Weights, lifted: dict[str, relax.Call], names: list[str]) -> relax.Function:
    """Return ``transform_params(params tuple) -> tuple`` from the parameters of ``model`` to ``names``.

    The form is that of ``LiftTransformParams``, so that ``LazyTransformParams`` can stream it; weights are packed
    in the order of their parameters.
    """
    builder = relax.BlockBuilder()
    inputs = relax.Var("params", relax.TupleType([param.ty for param in model.params]))
    position = {param: i for i, param in enumerate(model.params)}
    copies: dict[relax.Var, relax.Expr] = {}

    def copy(expr: relax.Expr) -> relax.Expr:
        if isinstance(expr, relax.Var):
            if expr not in copies:
                value = (
                    relax.TupleGetItem(inputs, position[expr])
                    if expr in position
                    else copy(model.bindings[expr])
                )
                copies[expr] = builder.emit(value, name_hint=expr.name)
            return copies[expr]
        if isinstance(expr, relax.Call):
            return relax.Call(expr.op, [copy(argument) for argument in expr.args], expr.attrs, expr.ty_args)
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([copy(field) for field in expr.fields])
        if isinstance(expr, relax.TupleGetItem):
            return relax.TupleGetItem(copy(expr.tuple_value), expr.index)
        return expr

    with builder.function(TRANSFORM, [inputs]):
        with builder.dataflow():
            values: dict[str, relax.Expr] = {}
            for param in model.params:
                if param.name in lifted:
                    packed = builder.emit(copy(lifted[param.name]))
                    for i, name in enumerate(packed_names(param.name)):
                        values[name] = builder.emit(relax.TupleGetItem(packed, i), name_hint=name)
                if param.name in names:
                    values[param.name] = copy(param)
            output = builder.emit_output(relax.Tuple([values[name] for name in names]))
        builder.emit_func_output(output)
    return builder.get()[TRANSFORM]


@tvm.transform.module_pass(opt_level=0, name="FoldNVFP4Weights")
class FoldNVFP4Weights:
    """Fold ``nvfp4.pack`` of constants, and lift that of weight parameters into ``transform_params``.

    The functions with ``num_input`` must take the same weight parameters (frontends export them so). A pack of
    a function's own inputs cannot be folded; it stays, with a warning, and runs at every call.

    Raises
    ------
    NVFP4Error
        If functions with weights to lift disagree on their parameters, or one parameter begins two different
        packed weights, which would get one name.
    """

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply to every Relax function."""
        functions = {
            gvar: _Weights(function)
            for gvar, function in mod.functions_items()
            if isinstance(function, relax.Function) and isinstance(function.body, relax.SeqExpr)
        }
        lifted: dict[str, relax.Call] = {}
        signatures: dict[str, str] = {}
        model: _Weights | None = None
        for gvar, weights in functions.items():
            for pack in weights.packs.values():
                weight = weights.lifted(pack)
                if weight is not None:
                    signature = weights.signature(pack)
                    if signatures.setdefault(weight, signature) != signature:
                        raise NVFP4Error(
                            f"FoldNVFP4Weights: {weight} is packed in two ways in {gvar.name_hint} or before it: "
                            f"{signatures[weight]} and {signature}; give each packed weight its own parameters"
                        )
                    lifted.setdefault(weight, pack)
                    model = model or weights
                elif not weights.constant(pack):
                    logger.warning(
                        "%s: nvfp4.pack of %s runs at every call: its operands are inputs, not weights; set "
                        "the function's num_input so that weights follow the inputs",
                        gvar.name_hint,
                        ", ".join(leaf.name for leaf in weights.leaves(pack)),
                    )
        new_params = self._new_params(functions, lifted, model) if model is not None else {}
        mod = tvm.IRModule(dict(mod.functions_items()), attrs=mod.attrs, global_infos=mod.global_infos)
        for gvar, weights in functions.items():
            function = self._fold(mod, mod[gvar], weights, new_params)
            mod.update_func(gvar, relax.analysis.remove_all_unused(function))
        if model is not None:
            mod[TRANSFORM] = _transform_function(model, lifted, list(new_params))
        return mod

    def _new_params(
        self, functions: dict[tvm.ir.GlobalVar, _Weights], lifted: dict[str, relax.Call], model: _Weights
    ) -> dict[str, relax.Type]:
        """Return the new weight parameters, name to type, each packed triple where its codes stood."""
        kept = {param.name for param in model.params}
        for gvar, weights in functions.items():
            if weights.params and [p.name for p in weights.params] != [p.name for p in model.params]:
                raise NVFP4Error(
                    f"FoldNVFP4Weights: function {gvar.name_hint} takes other weight parameters than the rest "
                    f"of the module; export all functions with the same parameters"
                )
        consumed = {leaf.name for pack in lifted.values() for leaf in model.leaves(pack)}
        still_used = set()
        for weights in functions.values():
            if weights.params:
                still_used |= _used_outside_packs(weights)
        kept -= consumed - still_used
        new: dict[str, relax.Type] = {}
        for param in model.params:
            if param.name in lifted:
                for name, ty in zip(packed_names(param.name), lifted[param.name].ty.fields, strict=True):
                    new[name] = ty
            if param.name in kept:
                new[param.name] = param.ty
        return new

    def _fold(
        self,
        mod: tvm.IRModule,
        function: relax.Function,
        weights: _Weights,
        new_params: dict[str, relax.Type],
    ) -> relax.Function:
        params = {name: relax.Var(name, ty) for name, ty in new_params.items()} if weights.params else {}
        replacement = {}
        for var, pack in weights.packs.items():
            weight = weights.lifted(pack)
            if weight is not None:
                replacement[var] = relax.Tuple([params[name] for name in packed_names(weight)])
            elif weights.constant(pack):
                replacement[var] = _pack_constants(weights, pack)
        if not replacement and not params:
            return function
        folder = _Folder(mod, replacement)
        for old in weights.params:
            if old.name in params:
                folder.set_var_remap(old, params[old.name])
        body = folder.visit_expr(function.body)
        inputs = list(function.params)[: weights.num_input]
        return relax.Function(
            [*inputs, *params.values()], body, function.ret_ty, function.is_pure, function.attrs
        )


def _used_outside_packs(weights: _Weights) -> set[str]:
    """Names of weight parameters that something other than a lifted pack depends on."""
    inside: set[relax.Var] = set()

    def mark(expr: relax.Expr) -> None:
        if isinstance(expr, relax.Var) and expr in weights.bindings and expr not in inside:
            inside.add(expr)
            for argument in _operands(weights.bindings[expr]):
                mark(argument)

    for var, pack in weights.packs.items():
        if weights.lifted(pack) is not None:
            inside.add(var)
            for argument in pack.args:
                mark(argument)
    params = set(weights.params)
    return {
        operand.name
        for var, value in weights.bindings.items()
        if var not in inside
        for operand in _operands(value)
        if operand in params
    }


def _operands(expr: relax.Expr) -> list[relax.Expr]:
    """Flatten the variables that a binding's value mentions directly."""
    if isinstance(expr, relax.Call):
        nested = [operand for argument in expr.args for operand in _operands(argument)]
        return nested
    if isinstance(expr, relax.Tuple):
        return [operand for field in expr.fields for operand in _operands(field)]
    if isinstance(expr, relax.TupleGetItem):
        return _operands(expr.tuple_value)
    return [expr] if isinstance(expr, relax.Var) else []
