"""Registering a Relax operator from Python: inference of its type, purity and a legalisation."""

from __future__ import annotations

from collections.abc import Callable

import tvm_ffi
from tvm import relax
from tvm.ir import Op, _ffi_api, make_node, register_op_attr

from nvfp4_tvm import errors
from nvfp4_tvm.errors import ShapeError

# Operators and passes run inside TVM's C++: registered, an error comes out as itself, not as a RuntimeError.
for _error in vars(errors).values():
    if isinstance(_error, type) and issubclass(_error, errors.NVFP4Error):
        tvm_ffi.register_error(_error.__name__, _error)


def register(
    name: str,
    description: str,
    num_inputs: int,
    infer_type: Callable[[relax.Call, relax.BlockBuilder], relax.Type],
    legalize: Callable[[relax.BlockBuilder, relax.Call], relax.Expr],
) -> Op:
    """Register a pure operator and return it; a negative ``num_inputs`` means any number."""
    _ffi_api.RegisterOp(name, description)
    op = Op.get(name)
    op.set_num_inputs(num_inputs)
    register_op_attr(name, "FPurity", True)
    register_op_attr(name, "FInferType", infer_type)
    register_op_attr(name, "FLegalize", legalize)
    return op


def call(op: Op, args: list[relax.Expr], **attrs: object) -> relax.Call:
    """Call ``op`` with attributes in a ``DictAttrs``."""
    return relax.Call(op, args, make_node("ir.DictAttrs", **attrs))


def tensor_type(
    op: str, argument: str, expr: relax.Expr, dtypes: tuple[str, ...], ndim: int | None = None
) -> relax.TensorType:
    """Return the type of an argument after checking that it is a tensor of a known shape.

    Raises
    ------
    ShapeError
        If the argument is no tensor, has another dtype or rank, or an unknown shape.
    """
    found = expr.ty
    if (
        not isinstance(found, relax.TensorType)
        or found.dtype not in dtypes
        or found.shape is None
        or (ndim is not None and found.ndim != ndim)
    ):
        rank = "" if ndim is None else f" of rank {ndim}"
        raise ShapeError(f"{op}: {argument} is {found}, expected a {' or '.join(dtypes)} tensor{rank}")
    return found


def static_shape(op: str, argument: str, ty: relax.TensorType) -> tuple[int, ...]:
    """Return a shape whose every extent is a constant; weights are never symbolic.

    Raises
    ------
    ShapeError
        If an extent is symbolic.
    """
    try:
        return tuple(int(extent) for extent in ty.shape)
    except (TypeError, ValueError):
        raise ShapeError(f"{op}: {argument} has shape {ty.shape}, expected constants") from None
