"""The host function of a matmul: it branches on M, allocates nothing, and calls the launches in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import tvm
from tvm import tirx
from tvm.ir import Call, PointerType, PrimType, StringImm
from tvm.target import Target

from nvfp4_tvm.codegen.workspace import offsets
from nvfp4_tvm.schedules.base import MRange
from nvfp4_tvm.schedules.kernel import CudaKernel


@dataclass(frozen=True)
class Branch:
    """What runs for a range of M.

    Attributes
    ----------
    m_range : MRange
        The range.
    kernel : CudaKernel
        The kernel.
    symbols : tuple of str
        Host symbols of its launches, in order.
    """

    m_range: MRange
    kernel: CudaKernel
    symbols: tuple[str, ...]


class Problem(Protocol):
    """What a host function must know of a problem, a MatmulProblem or a DenseProblem."""

    @property
    def out_N(self) -> tirx.Expr | int:
        """Columns of ``out``."""

    @property
    def out_dtype(self) -> str:
        """Its dtype."""

    def operands(self, M: tirx.Expr | int) -> Mapping[str, tuple[tuple[tirx.Expr | int, ...], str]]:
        """Return shape and dtype of every operand, in order, ``out`` not included."""


def parameters(problem: Problem, M: tirx.Expr, workspace_bytes: tirx.Expr | None) -> dict[str, tirx.Buffer]:
    """Return the buffers of the host function by name, in order: operands, ``out``, and ``workspace`` or none."""
    shapes = dict(problem.operands(M))
    shapes["out"] = ((M, problem.out_N), problem.out_dtype)
    if workspace_bytes is not None:
        shapes["workspace"] = ((workspace_bytes,), "uint8")
    return {name: tirx.decl_buffer(shape, dtype, name) for name, (shape, dtype) in shapes.items()}


def host_function(
    name: str, problem: Problem, branches: Sequence[Branch], target: Target, workspace: bool = True
) -> tirx.PrimFunc:
    """Return the host function ``name(operands..., out[, workspace])``; branches are in order of M.

    No rows means no launch. An M that no branch covers, and a workspace that is too small, are errors at run time.
    """
    M, nbytes = tirx.Var("M", "int64"), tirx.Var("workspace_bytes", "int64")
    buffers = parameters(problem, M, nbytes if workspace else None)
    high = branches[-1].m_range.high
    covered = M >= tirx.const(branches[0].m_range.low, "int64")
    if high is not None:
        covered = tirx.all(covered, M <= tirx.const(high, "int64"))
    body = _launches(branches[-1], buffers, M, nbytes, name)
    for branch in reversed(branches[:-1]):
        assert branch.m_range.high is not None, "only the last range has no end"
        condition = M <= tirx.const(branch.m_range.high, "int64")
        body = tirx.IfThenElse(condition, _launches(branch, buffers, M, nbytes, name), body)
    span = MRange(branches[0].m_range.low, high)
    body = tirx.SeqStmt([_check(covered, f"{name}: M is outside of {span}, for which it was built"), body])
    body = tirx.IfThenElse(M >= tirx.const(1, "int64"), body, None)
    function = tirx.PrimFunc(list(buffers.values()), body)
    return function.with_attrs({"global_symbol": name, "tirx.noalias": True, "target": target})


def lower_host(function: tirx.PrimFunc) -> tvm.IRModule:
    """Return the module of a host function as LLVM's code generator takes it."""
    passes = [
        tirx.transform.AnnotateEntryFunc(),
        tirx.transform.FlattenBuffer(),
        tirx.transform.MakePackedAPI(),
        tirx.transform.BF16StorageLegalize(),  # LLVM's code generator crashes on bfloat16 buffers
        tirx.transform.LowerTVMBuiltin(),
        tirx.transform.LowerIntrin(),
    ]
    name = str(function.attrs["global_symbol"])
    return tvm.transform.Sequential(passes)(tvm.IRModule({name: function}))


def _check(condition: tirx.Expr, message: str) -> tirx.Stmt:
    # In the order of the constructor in C++: the Python wrapper of TVM 0.27 names the first two the other way
    return tirx.AssertStmt(condition, StringImm("ValueError"), [StringImm(message)])


def _launches(
    branch: Branch, buffers: dict[str, tirx.Buffer], M: tirx.Var, nbytes: tirx.Var, name: str
) -> tirx.Stmt:
    kernel = branch.kernel
    at, end = offsets(kernel, M)
    statements: list[tirx.Stmt] = []
    arguments: dict[str, tirx.Expr] = {
        buffer_name: _array(buffer.data, buffer.shape, str(buffer.dtype))
        for buffer_name, buffer in buffers.items()
    }
    if kernel.workspaces:
        message = f"{name}: the workspace is smaller than workspace_bytes(M)"
        statements.append(_check(nbytes >= end, message))
    for workspace in kernel.workspaces:
        pointer = tirx.address_of(buffers["workspace"][at[workspace.name]])
        arguments[workspace.name] = _array(pointer, workspace.shape(M), workspace.dtype)
    for symbol, launch in zip(branch.symbols, kernel.launches, strict=True):
        call = tirx.call_cpacked(symbol, *(arguments[argument] for argument in launch.arguments))
        statements.append(tirx.Evaluate(call))
    return statements[0] if len(statements) == 1 else tirx.SeqStmt(statements)


def _array(data: tirx.Expr, shape: Sequence[tirx.Expr | int], dtype: str) -> tirx.Expr:
    """Return a DLTensor on the stack, compact and without an offset (``tvm_stack_make_array``)."""
    extents = [tirx.const(extent, "int64") if isinstance(extent, int) else extent for extent in shape]
    stack_shape = Call("tirx.tvm_stack_make_shape", extents, ret_ty=PointerType(PrimType("int64")))
    rank, element, offset = tirx.const(len(extents), "int32"), tirx.const(0, dtype), tirx.const(0, "int64")
    arguments = [data, stack_shape, tirx.const(0, "int32"), rank, element, offset]
    return Call("tirx.tvm_stack_make_array", arguments, ret_ty="handle")
