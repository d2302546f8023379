"""What a folded module's ``transform_params`` asks for, read instead of run.

``transform_params`` (:class:`~nvfp4_tvm.passes.fold_weights.FoldNVFP4Weights`) says which parameters of the model
are packed from which canonical ones, and in which order of rows. With that, a checkpoint streams through one
compiled repack (:mod:`nvfp4_tvm.packing`), weight by weight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax

from nvfp4_tvm.errors import NVFP4Error
from nvfp4_tvm.op.pack import NAME as PACK
from nvfp4_tvm.passes.fold_weights import PACKED_FIELDS, TRANSFORM
from nvfp4_tvm.passes.rewrite_matmul import is_call


@dataclass(frozen=True)
class PackedOutput:
    """Three outputs of the transform that are one packed weight.

    Attributes
    ----------
    operands : tuple of int
        Indices of the canonical parameters: codes, scales, global scale.
    order : numpy.ndarray or None
        Canonical row of each packed row; None leaves them as they are.
    """

    operands: tuple[int, int, int]
    order: np.ndarray | None


@dataclass(frozen=True)
class PlainOutput:
    """An output of the transform that is a canonical parameter as it stands."""

    operand: int


def split_transform(mod: tvm.IRModule) -> tuple[tvm.IRModule, tvm.IRModule | None]:
    """Separate ``transform_params`` from the functions that run at every token.

    Returns
    -------
    tuple
        The model without it, and a module of it alone, None if nothing was lifted.
    """
    functions = dict(mod.functions_items())
    transform = next((gvar for gvar in functions if gvar.name_hint == TRANSFORM), None)
    if transform is None:
        return mod, None
    alone = tvm.IRModule({TRANSFORM: functions.pop(transform)})
    return tvm.IRModule(functions, attrs=mod.attrs, global_infos=mod.global_infos), alone


def read_transform(transform: tvm.IRModule) -> list[PackedOutput | PlainOutput]:
    """Return what ``transform_params`` computes, in the order of its outputs; a packed weight is three of them.

    Raises
    ------
    NVFP4Error
        If it does anything to a weight but reorder its rows and pack it.
    """
    reader = _Reader(transform[TRANSFORM])
    outputs: list[PackedOutput | PlainOutput] = []
    fields = list(reader.resolve(transform[TRANSFORM].body.body).fields)
    while fields:
        index = reader.parameter(fields[0])
        outputs.append(reader.packed(fields[0]) if index is None else PlainOutput(index))
        del fields[: len(PACKED_FIELDS) if index is None else 1]
    return outputs


class _Reader:
    def __init__(self, function: relax.Function) -> None:
        self.params = function.params[0]
        self.bound = {
            binding.var: binding.value for block in function.body.blocks for binding in block.bindings
        }

    def resolve(self, expr: relax.Expr) -> relax.Expr:
        """Follow variables to what they are bound to."""
        while isinstance(expr, relax.Var) and expr in self.bound:
            expr = self.bound[expr]
        return expr

    def parameter(self, expr: relax.Expr) -> int | None:
        """Return the index of the canonical parameter that ``expr`` is, or None."""
        item = self.resolve(expr)
        if isinstance(item, relax.TupleGetItem) and self.resolve(item.tuple_value).same_as(self.params):
            return int(item.index)
        return None

    def packed(self, expr: relax.Expr) -> PackedOutput:
        """Return the packed weight whose first part is ``expr``."""
        item = self.resolve(expr)
        pack = self.resolve(item.tuple_value) if isinstance(item, relax.TupleGetItem) else item
        if not is_call(pack, PACK):
            raise NVFP4Error(f"{TRANSFORM}: found {item}, expected a parameter or a part of {PACK}")
        operands, orders = zip(*map(self.rows, pack.args), strict=True)
        flat = [order.reshape(-1) for order in orders]
        if any(order.size > 1 and not np.array_equal(order, flat[0]) for order in flat):
            raise NVFP4Error(f"{TRANSFORM}: found codes and scales in different orders of rows in {pack}")
        same = np.array_equal(flat[0], np.arange(flat[0].size))
        return PackedOutput(operands, None if same else flat[0])

    def rows(self, expr: relax.Expr) -> tuple[int, np.ndarray]:
        """Return the parameter that ``expr`` reorders, and its rows in their new order, in any shape."""
        index, item = self.parameter(expr), self.resolve(expr)
        shape = [int(extent) for extent in expr.ty.shape]
        if index is not None:
            return index, np.arange(shape[0] if shape else 1)
        if is_call(item, "relax.reshape"):
            index, order = self.rows(item.args[0])
            # The axes that the rows now span; those within a row follow.
            axes = next((n for n in range(len(shape) + 1) if math.prod(shape[:n]) >= order.size), 0)
            if math.prod(shape[:axes]) == order.size:
                return index, order.reshape(shape[:axes])
        elif is_call(item, "relax.permute_dims"):
            index, order = self.rows(item.args[0])
            moved = [int(axis) for axis in item.attrs.axes]
            if moved[order.ndim :] == list(range(order.ndim, len(moved))):
                return index, order.transpose(moved[: order.ndim])
        raise NVFP4Error(f"{TRANSFORM}: found {item}, expected rows of a parameter in some order")
