"""LowerDense: plain linear layers, ``matmul(x, permute_dims(w))``, become calls of this project's kernels.

Checkpoints leave the head and some layers unquantized. On CUDA they get :mod:`nvfp4_tvm.schedules.dense`, machine
code by now as the NVFP4 kernels are (:mod:`nvfp4_tvm.passes.lower_matmul`): dlight's product uses no tensor cores
for bfloat16, and reads a head at a fraction of the memory's speed. On the CPU TVM has no schedule for them and
:mod:`nvfp4_tvm.schedules.cpu_dense` is called. Who has cuBLAS dispatches to it before this pass.
"""

from __future__ import annotations

import logging

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator
from tvm.target import Target

from nvfp4_tvm.codegen.dense import build_dense
from nvfp4_tvm.codegen.machine_code import BuildLog
from nvfp4_tvm.codegen.single import BuiltLaunch
from nvfp4_tvm.op.matmul import flatten, unflatten
from nvfp4_tvm.passes.external import attach
from nvfp4_tvm.passes.lower_matmul import OPAQUE
from nvfp4_tvm.passes.rewrite_matmul import is_call
from nvfp4_tvm.schedules.base import ACTIVATION_DTYPES
from nvfp4_tvm.schedules.cpu_dense import dense
from nvfp4_tvm.schedules.dense import fits
from nvfp4_tvm.schedules.dense_kernel import ELEMENTS
from nvfp4_tvm.schedules.dense_problem import DenseProblem

logger = logging.getLogger(__name__)


class _Lowerer(PyExprMutator):
    """Finds linear layers and flattens their rows; what is called is up to the target."""

    def __init__(self, mod: tvm.IRModule, target: Target) -> None:
        super().__init__(mod)
        self.target = target

    def takes(self, problem: DenseProblem) -> bool:
        """Whether there is a kernel for a layer."""
        raise AssertionError("abstract")

    def lower(self, problem: DenseProblem, x: relax.Expr, weight: relax.Expr) -> relax.Expr:
        """Return the product [M, N] of x [M, K] and a weight."""
        raise AssertionError("abstract")

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = super().visit_call_(call)
        weight = self._transposed(call.args[1]) if is_call(call, "relax.matmul") else None
        if weight is None or not self._fits(call.args[0], weight):
            return call
        N, K = weight.ty.shape
        known = int(N) if isinstance(N, tvm.tirx.IntImm) else None
        problem = DenseProblem(known, int(K), str(weight.ty.dtype), str(call.ty.dtype))
        if not self.takes(problem):
            return call
        rows, leading = flatten(self.builder_, call.args[0])
        out = self.lower(problem, rows, weight)
        return unflatten(self.builder_.emit(out), leading, N) if leading is not None else out

    def _transposed(self, expr: relax.Expr) -> relax.Expr | None:
        """Return what ``expr`` is the transpose of, if it is a matrix of a constant number of columns."""
        value = self.lookup_binding(expr) if isinstance(expr, relax.Var) else expr
        if value is None or not is_call(value, "relax.permute_dims"):
            return None
        matrix, axes = value.args[0], value.attrs.axes
        swapped = axes is None or [int(axis) for axis in axes] == [1, 0]
        ty = matrix.ty
        if not swapped or ty.ndim != 2 or not isinstance(ty.shape[1], tvm.tirx.IntImm):
            return None
        return matrix

    @staticmethod
    def _fits(x: relax.Expr, weight: relax.Expr) -> bool:
        dtype = str(weight.ty.dtype)
        return dtype in ACTIVATION_DTYPES and str(x.ty.dtype) == dtype and x.ty.ndim >= 1


@mutator
class _LowererToTIR(_Lowerer):
    def __init__(self, mod: tvm.IRModule, target: Target) -> None:
        super().__init__(mod, target)
        self.kernels: dict[DenseProblem, tvm.ir.GlobalVar] = {}

    def takes(self, problem: DenseProblem) -> bool:
        """Take every layer."""
        return True

    def kernel(self, problem: DenseProblem) -> tvm.ir.GlobalVar:
        """Return the kernel of ``problem``, adding it to the module on first use."""
        if problem not in self.kernels:
            function = dense(problem, self.target).with_attr("op_pattern", OPAQUE)
            self.kernels[problem] = self.builder_.add_func(
                function.without_attr("global_symbol"), problem.label
            )
        return self.kernels[problem]

    def lower(self, problem: DenseProblem, x: relax.Expr, weight: relax.Expr) -> relax.Expr:
        """Call a PrimFunc."""
        ty = relax.TensorType((x.ty.shape[0], weight.ty.shape[0]), problem.out_dtype)
        return relax.call_tir(self.kernel(problem), [x, weight], ty)


@mutator
class _LowererToMachineCode(_Lowerer):
    def __init__(self, mod: tvm.IRModule, target: Target, log: BuildLog) -> None:
        super().__init__(mod, target)
        self.log = log
        self.built: dict[DenseProblem, BuiltLaunch] = {}
        self.left: set[DenseProblem] = set()

    def takes(self, problem: DenseProblem) -> bool:
        """Take 16-bit layers; tell of any other, once, that TVM's schedule runs it."""
        if fits(problem, self.target):
            return True
        if problem not in self.left:
            self.left.add(problem)
            logger.warning(
                "linear layer [%s, %d] of %s: TVM's own schedule runs it; this project's kernel takes 16-bit "
                "operands with K a multiple of %d",
                problem.out_N,
                problem.K,
                problem.dtype,
                ELEMENTS,
            )
        return False

    def lower(self, problem: DenseProblem, x: relax.Expr, weight: relax.Expr) -> relax.Expr:
        """Call the host function."""
        if problem not in self.built:
            self.built[problem] = build_dense(problem, self.target)
            self.log.modules.extend(self.built[problem].log.modules)
        ty = relax.TensorType((x.ty.shape[0], weight.ty.shape[0]), problem.out_dtype)
        return relax.op.call_dps_packed(self.built[problem].name, [x, weight], ty)


@tvm.transform.module_pass(opt_level=0, name="LowerDense")
class LowerDense:
    """Lower plain linear layers for ``target``, or the current one; only llvm and CUDA have kernels.

    On CUDA, machine code is made here; resources of the kernels are appended to ``log`` if there is one.

    Raises
    ------
    CompileError
        If a CUDA kernel does not compile.
    """

    def __init__(self, target: Target | None = None, log: BuildLog | None = None) -> None:
        self.target = target
        self.log = BuildLog() if log is None else log

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply to every Relax function."""
        target = self.target or Target.current(allow_none=False)
        if target.kind.name == "llvm":
            return _lowered(_LowererToTIR(mod, target), mod)
        if target.kind.name == "cuda":
            lowerer = _LowererToMachineCode(mod, target, self.log)
            lowered = _lowered(lowerer, mod)
            return attach(lowered, ((built.name, built.module) for built in lowerer.built.values()))
        return mod


def _lowered(lowerer: _Lowerer, mod: tvm.IRModule) -> tvm.IRModule:
    for gvar, function in mod.functions_items():
        if isinstance(function, relax.Function):
            lowered = relax.analysis.remove_all_unused(lowerer.visit_expr(function))
            lowerer.builder_.update_func(gvar, lowered)
    return lowerer.builder_.get()
