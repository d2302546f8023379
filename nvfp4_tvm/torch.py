"""PyTorch models with NVFP4 linear layers, and their way through ``torch.export`` into Relax.

`Linear` holds a canonical NVFP4 weight and calls the custom operator ``nvfp4_tvm::linear``. `from_exported`
maps the operator to ``nvfp4.matmul`` on ``nvfp4.pack``, which the passes fold; `compile_exported` does
everything.

>>> replace_linears(model)
>>> program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
>>> compiled = compile_exported(program, target="llvm")
>>> y = compiled(x)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

try:
    import torch
except ImportError as error:
    raise ImportError(
        "nvfp4_tvm.torch needs PyTorch, which is an optional extra; run: pip install 'nvfp4-tvm[torch]'"
    ) from error

import tvm
from torch import nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator
from tvm.relax.frontend.torch import from_exported_program

from nvfp4_tvm import compiler, layout, op
from nvfp4_tvm.errors import NVFP4Error, ShapeError
from nvfp4_tvm.passes.pipeline import weight_passes
from nvfp4_tvm.target import ResolvedTarget, resolve_target
from nvfp4_tvm.torch_linear import Linear, replace_linears
from nvfp4_tvm.torch_ops import decode, linear
from nvfp4_tvm.torch_packed import PackedWeight, describe, interleave, pack

__all__ = [
    "CompiledModule",
    "Linear",
    "PackedWeight",
    "compile_exported",
    "decode",
    "from_exported",
    "interleave",
    "linear",
    "pack",
    "replace_linears",
]

#: TVM's importer looks converters up by ``OpOverload.__name__``, which has no namespace: ``aten::linear`` is
#: "linear.default" too.
_CONVERTER = "linear.default"
_PACKED_CONVERTER = "packed_linear.default"

#: Of TVM's importer: the FX node and the importer to the converted value.
Converter = Callable[[torch.fx.Node, Any], relax.Var]


def _operands(node: torch.fx.Node) -> tuple[torch.fx.Node, list[torch.fx.Node], torch.fx.Node | None]:
    """Return x, the three tensors of the weight and the bias of an ``nvfp4_tvm::linear``."""
    names = ("x", "codes", "scales", "global_scale", "bias")
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    return given["x"], [given[name] for name in names[1:4]], given.get("bias")


def _converter(otherwise: Converter | None) -> Converter:
    """Return the converter of "linear.default"; others' operators go to ``otherwise`` or TVM."""
    packed: dict[tuple[torch.fx.Node, ...], list[relax.Expr]] = {}

    def convert(node: torch.fx.Node, importer: Any) -> relax.Var:
        if node.target is not torch.ops.nvfp4_tvm.linear.default:
            if otherwise is not None:
                return otherwise(node, importer)
            return importer.create_convert_map()[_CONVERTER](node)
        x, weight, bias = _operands(node)
        operands = [importer.env[operand] for operand in weight]
        key = tuple(weight)
        # Once a weight, however many layers share it: every pack becomes a constant or parameters of its own.
        if key not in packed:
            pack = importer.block_builder.emit(op.pack(*operands))
            packed[key] = [importer.block_builder.emit(relax.TupleGetItem(pack, i)) for i in range(3)]
        N = int(operands[0].ty.shape[0])
        bias_expr = None if bias is None else importer.env[bias]
        words, scales, global_scale = packed[key]
        call = op.matmul(importer.env[x], words, scales, global_scale, bias_expr, N=N)
        return importer.block_builder.emit(call)

    return convert


def _convert_packed(node: torch.fx.Node, importer: Any) -> relax.Var:
    """Convert an ``nvfp4_tvm::packed_linear``: its weight is packed already, its epilogue becomes operators."""
    names = ("x", "words", "scales", "global_scale", "N", "K", "bias", "residual", "activation", "out_dtype")
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    x, words, scales, global_scale = (importer.env[given[name]] for name in names[:4])
    bias, residual = (importer.env.get(given.get(name)) for name in ("bias", "residual"))
    emit, N = importer.block_builder.emit, int(given["N"])
    dtype = str(given.get("out_dtype") or x.ty.dtype).removeprefix("torch.")
    plain = residual is None and given.get("activation") is None
    out = emit(op.matmul(x, words, scales, global_scale, bias, N=N, out_dtype=dtype if plain else "float32"))
    if given.get("activation") == "silu_mul":
        leading, half = list(out.ty.shape)[:-1], layout.TILE_N // 2
        tiles = emit(relax.op.reshape(out, (*leading, N // layout.TILE_N, 2, half)))
        gate, up = (emit(relax.op.take(tiles, relax.prim_value(i), axis=len(leading) + 1)) for i in range(2))
        out = emit(relax.op.reshape(relax.op.nn.silu(gate) * up, (*leading, N // 2)))
    if residual is not None:
        out = emit(out + relax.op.astype(residual, "float32"))
    return out if plain else emit(relax.op.astype(out, dtype))


def _weights_as_parameters(program: ExportedProgram) -> ExportedProgram:
    """Return a copy whose NVFP4 weights are parameters: the importer turns every buffer into a constant."""
    program = program.run_decompositions()
    weights = {
        operand.name
        for node in program.graph.nodes
        if node.op == "call_function" and node.target is torch.ops.nvfp4_tvm.linear.default
        for operand in _operands(node)[1]
    }
    for spec in program.graph_signature.input_specs:
        if spec.kind is InputKind.BUFFER and spec.arg.name in weights:
            spec.kind = InputKind.PARAMETER
    return program


@mutator
class _Renamer(PyExprMutator):
    """Gives parameters other names."""

    def rename(self, function: relax.Function, names: Mapping[str, str]) -> relax.Function:
        params = []
        for old in function.params:
            params.append(relax.Var(names[old.name], old.ty) if old.name in names else old)
            self.set_var_remap(old, params[-1])
        body = self.visit_expr(function.body)
        return relax.Function(params, body, function.ret_ty, function.is_pure, function.attrs)


def from_exported(
    program: ExportedProgram,
    *,
    keep_params_as_input: bool = False,
    custom_convert_map: Mapping[str, Converter] | None = None,
    **options: Any,
) -> tvm.IRModule:
    """Import an exported program; every ``nvfp4_tvm::linear`` becomes ``nvfp4.matmul`` on ``nvfp4.pack``.

    ``nvfp4_tvm::packed_linear``, which `linear` with a `PackedWeight` is, becomes ``nvfp4.matmul`` alone.

    Parameters
    ----------
    program : torch.export.ExportedProgram
        With or without dynamic shapes.
    keep_params_as_input : bool
        Whether parameters, and the weights of our layers, are inputs of ``main`` and not constants. They have
        the names of the state dict, follow the ``num_input`` inputs and are values of the attribute
        ``params`` (``tvm.relax.frontend.detach_params`` takes them out). ``FoldNVFP4Weights`` then makes a
        ``transform_params`` from them, which `nvfp4_tvm.packing` runs.
    custom_convert_map : mapping, optional
        Converters for other custom operators.
    **options : Any
        Of ``tvm.relax.frontend.torch.from_exported_program``.

    Returns
    -------
    tvm.IRModule
        With the function ``main``, for `nvfp4_tvm.pipeline`.
    """
    converters = dict(custom_convert_map or {})
    converters[_CONVERTER] = _converter(converters.get(_CONVERTER))
    converters[_PACKED_CONVERTER] = _convert_packed
    if keep_params_as_input:
        program, options = _weights_as_parameters(program), {**options, "run_ep_decomposition": False}
    mod = from_exported_program(
        program, keep_params_as_input=keep_params_as_input, custom_convert_map=converters, **options
    )
    if keep_params_as_input:
        names = {
            spec.arg.name: spec.target
            for spec in program.graph_signature.input_specs
            if spec.kind is InputKind.PARAMETER
        }
        mod["main"] = _Renamer(mod).rename(mod["main"], names)
    return mod


class CompiledModule:
    """A compiled program: called with torch tensors, it returns torch tensors.

    Attributes
    ----------
    executable : tvm.relax.VMExecutable
        For ``tvm.relax.VirtualMachine``; its function is ``main``.
    target : ResolvedTarget
        What it was compiled for.
    """

    def __init__(
        self, executable: relax.VMExecutable, target: ResolvedTarget, inputs: list[relax.Type]
    ) -> None:
        self.executable, self.target, self._inputs = executable, target, inputs
        self._main: Callable[..., Any] | None = None

    def export_library(self, path: str | Path) -> None:
        """Write a shared library that ``tvm.runtime.load_module`` loads, weights included.

        Raises
        ------
        TargetError
            If there is no C++ compiler to link with.
        """
        compiler.export(self.executable, Path(path))

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Run the program on its inputs, in the order of the exported program.

        Raises
        ------
        ShapeError
            If the number, dtype, rank, device or a constant extent of an input is not that of the program, or
            an extent is zero.
        """
        if len(inputs) != len(self._inputs):
            raise ShapeError(f"compiled module: found {len(inputs)} inputs, expected {len(self._inputs)}")
        arguments = [self._argument(i, tensor) for i, tensor in enumerate(inputs)]
        if self._main is None:
            self._main = relax.VirtualMachine(self.executable, tvm.device(self.target.device_type))["main"]
        out = self._main(*arguments)
        if isinstance(out, tvm.runtime.Tensor):
            return torch.from_dlpack(out)
        return tuple(torch.from_dlpack(tensor) for tensor in out)

    def _argument(self, i: int, tensor: torch.Tensor) -> tvm.runtime.Tensor:
        expected = self._inputs[i]
        extents = [
            int(e) if isinstance(e, tvm.tirx.IntImm) else e.name if tvm.ir.is_prim_var(e) else "?"
            for e in expected.shape
        ]
        fits = (
            str(tensor.dtype) == f"torch.{expected.dtype}"
            and tensor.device.type == self.target.device_type
            and tensor.ndim == len(extents)
            and all(
                not isinstance(want, int) or want == got
                for want, got in zip(extents, tensor.shape, strict=True)
            )
        )
        if not fits:
            raise ShapeError(
                f"compiled module: input {i} is {describe(tensor)} on {tensor.device.type}, expected "
                f"{expected.dtype}[{', '.join(map(str, extents))}] on {self.target.device_type}"
            )
        if 0 in tensor.shape:  # a matmul kernel takes at least one row
            raise ShapeError(f"compiled module: input {i} is {describe(tensor)}, expected no empty extent")
        tensor = tensor.detach().contiguous()
        # Kernels load whole vectors, and TVM aligns its own tensors to 64 bytes (kAllocAlignment).
        if tensor.data_ptr() % 64:
            tensor = tensor.clone()
        return tvm.runtime.from_dlpack(tensor)


def compile_exported(
    program: ExportedProgram | nn.Module,
    args: tuple[torch.Tensor, ...] | None = None,
    *,
    dynamic_shapes: Any = None,
    target: str = "llvm",
) -> CompiledModule:
    """Compile an exported program, or export a module first.

    Weights become constants of the library, in the packed layout only. For more than a few GB of them use
    `from_exported` with ``keep_params_as_input``.

    Parameters
    ----------
    program : torch.export.ExportedProgram or torch.nn.Module
        What to compile; its outputs are a tensor or a flat tuple of tensors.
    args : tuple of torch.Tensor, optional
        Example inputs, for a module.
    dynamic_shapes : Any, optional
        Of ``torch.export.export``, for a module.
    target : str
        See `nvfp4_tvm.target.resolve_target`.

    Raises
    ------
    NVFP4Error
        If a module comes without example inputs or a program with them, or the target is not supported.
    """
    if isinstance(program, nn.Module):
        if args is None:
            raise NVFP4Error("compile_exported: a module needs example inputs: pass args=(x, ...)")
        program = torch.export.export(program, args, dynamic_shapes=dynamic_shapes)
    elif args is not None or dynamic_shapes is not None:
        raise NVFP4Error("compile_exported: an exported program has its inputs and shapes: leave out args")
    resolved = resolve_target(target)
    mod = tvm.transform.Sequential(weight_passes())(from_exported(program, unwrap_unit_return_tuple=True))
    inputs = [param.ty for param in mod["main"].params]
    executable, _ = compiler.build(mod, resolved)
    return CompiledModule(executable, resolved, inputs)
