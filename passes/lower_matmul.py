"""LowerNVFP4Matmul: ``nvfp4.matmul`` and ``nvfp4.grouped_matmul`` become calls of kernels for the target, N, K, M.

Activations [..., K] are flattened to [M, K], and calls that pose the same problem for different M share one
function, which branches on M.

- On llvm the function is a scheduled PrimFunc (:mod:`nvfp4_tvm.schedules.dispatch`), called by ``call_tir``.
- On CUDA it is machine code by now (:mod:`nvfp4_tvm.codegen.matmul`), in the module attribute ``external_mods``,
  called by ``call_dps_packed``: whatever pipeline lowers the rest of the module leaves it as it is. Its workspace
  is a second output, so that memory planning owns it.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import tvm
from tvm import relax, tirx
from tvm.relax.expr_functor import PyExprMutator, mutator
from tvm.sym import Analyzer
from tvm.target import Target

from nvfp4_tvm.codegen.machine_code import BuildLog
from nvfp4_tvm.codegen.matmul import build_matmuls
from nvfp4_tvm.op.grouped_matmul import NAME as GROUPED
from nvfp4_tvm.op.grouped_matmul import operands as grouped_operands
from nvfp4_tvm.op.grouped_matmul import problem_of as grouped_problem
from nvfp4_tvm.op.grouped_matmul import rows_of
from nvfp4_tvm.op.matmul import NAME as MATMUL
from nvfp4_tvm.op.matmul import flatten, operands, problem_of, te_output, unflatten
from nvfp4_tvm.passes.external import attach
from nvfp4_tvm.passes.rewrite_matmul import is_call
from nvfp4_tvm.schedules.base import MatmulProblem, MRange
from nvfp4_tvm.schedules.dispatch import dispatch, table_for

logger = logging.getLogger(__name__)

#: relax.op pattern kind kOpaque (include/tvm/relax/op_attr_types.h): FuseOps must not touch a scheduled kernel.
OPAQUE = 8
#: Memory planning divides by the bytes of a storage.
_MIN_WORKSPACE = 16


class _Lowerer(PyExprMutator):
    """Flattens the rows of every call; what is called is up to the target."""

    def __init__(self, mod: tvm.IRModule, target: Target) -> None:
        super().__init__(mod)
        self.target = target

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = super().visit_call_(call)
        if is_call(call, GROUPED):
            return self.lower(grouped_problem(call), grouped_operands(call), rows_of(call))
        if not is_call(call, MATMUL):
            return call
        named, leading = operands(call), None
        for name in ("x", "residual"):
            if name in named:
                named[name], leading = flatten(self.builder_, named[name])
        problem = problem_of(call)
        out = self.lower(problem, named, named["x"].ty.shape[0])
        return out if leading is None else unflatten(self.builder_.emit(out), leading, problem.out_N)

    def lower(self, problem: MatmulProblem, named: dict[str, relax.Expr], M: tirx.Expr) -> relax.Expr:
        """Return the product [M, out_N] of flat operands."""
        raise AssertionError("abstract")


@mutator
class _LowererToTIR(_Lowerer):
    def __init__(self, mod: tvm.IRModule, target: Target) -> None:
        super().__init__(mod, target)
        self.kernels: dict[MatmulProblem, tvm.ir.GlobalVar] = {}

    def kernel(self, problem: MatmulProblem) -> tvm.ir.GlobalVar:
        """Return the kernel of ``problem``, adding it to the module on first use."""
        if problem not in self.kernels:
            function = dispatch(problem, self.target).with_attrs(
                {"tirx.is_scheduled": 1, "tirx.noalias": True, "op_pattern": OPAQUE}
            )
            if "global_symbol" in (function.attrs or {}):
                function = function.without_attr("global_symbol")
            name = f"nvfp4_{problem.label}"
            self.kernels[problem] = self.builder_.add_func(function, name)
        return self.kernels[problem]

    def lower(self, problem: MatmulProblem, named: dict[str, relax.Expr], M: tirx.Expr) -> relax.Expr:
        """Call a PrimFunc; an activation or a residual follows it as one more, element by element."""
        problem = replace(problem, M=MRange(int(M), int(M)) if isinstance(M, tirx.IntImm) else MRange())
        residual = named.pop("residual", None)
        fused = residual is not None or problem.activation is not None
        out_dtype = "float32" if fused else problem.out_dtype
        products = replace(problem, residual=False, activation=None, out_dtype=out_dtype)
        out = relax.call_tir(
            self.kernel(products), list(named.values()), relax.TensorType((M, problem.N), out_dtype)
        )
        if not fused:
            return out
        return self.builder_.call_te(
            lambda out, residual: te_output(problem, out.shape[0], lambda m, n: out[m, n], residual),
            self.builder_.emit(out),
            residual,
            primfunc_name_hint="nvfp4_epilogue",
        )


@mutator
class _LowererToMachineCode(_Lowerer):
    def __init__(
        self, mod: tvm.IRModule, target: Target, spans: dict[MatmulProblem, MRange], log: BuildLog
    ) -> None:
        super().__init__(mod, target)
        spanned = {problem: replace(problem, M=span) for problem, span in spans.items()}
        built = build_matmuls(list(spanned.values()), target)
        #: Of each problem, for every M of the module.
        self.built = {problem: built[whole] for problem, whole in spanned.items()}
        for matmul in self.built.values():
            log.modules.extend(matmul.log.modules)

    def lower(self, problem: MatmulProblem, named: dict[str, relax.Expr], M: tirx.Expr) -> relax.Expr:
        """Call the host function; its second output is the workspace."""
        built = self.built[problem]
        if isinstance(M, tirx.IntImm):
            nbytes = tirx.const(max(built.workspace_bytes(int(M)), _MIN_WORKSPACE), "int64")
        else:
            nbytes = replace(built.bytes, constant=max(built.bytes.constant, _MIN_WORKSPACE)).of(M)
        types = [
            relax.TensorType((M, problem.out_N), problem.out_dtype),
            relax.TensorType((Analyzer().simplify(nbytes),), "uint8"),
        ]
        both = self.builder_.emit(relax.op.call_dps_packed(built.name, list(named.values()), types))
        return relax.TupleGetItem(both, 0)


@relax.expr_functor.visitor
class _Spans(relax.expr_functor.PyExprVisitor):
    """Collects the problems of one function with the range of M each is posed for."""

    def __init__(self, function: relax.Function, spans: dict[MatmulProblem, MRange]) -> None:
        super().__init__()
        self.spans = spans
        bounds = (function.attrs or {}).get("tir_var_upper_bound") or {}
        self.bounds = {str(name): int(bound) for name, bound in bounds.items()}

    def visit_call_(self, call: relax.Call) -> None:
        super().visit_call_(call)
        if is_call(call, MATMUL):
            self.add(problem_of(call), list(call.args[0].ty.shape)[:-1])
        if is_call(call, GROUPED):
            self.add(grouped_problem(call), [rows_of(call)])

    def add(self, problem: MatmulProblem, rows: list[tirx.Expr]) -> None:
        """Note that a problem is posed for the product of some extents."""
        known, found = self.spans.get(problem), self.range(rows)
        self.spans[problem] = found if known is None else _hull(known, found)

    def range(self, leading: list[tirx.Expr]) -> MRange:
        """Return the values that the product of some extents can have; zero rows need no kernel."""
        low, high = 1, 1
        factors = list(leading)
        while factors:
            extent = factors.pop()
            if isinstance(extent, tirx.Mul):
                factors += [extent.a, extent.b]
            elif isinstance(extent, tirx.IntImm):
                low, high = low * int(extent), high * int(extent)
            elif isinstance(extent, tirx.Var) and extent.name in self.bounds:
                high *= self.bounds[extent.name]
            else:
                return MRange()
        return MRange(max(low, 1), max(high, 1))


def _hull(a: MRange, b: MRange) -> MRange:
    high = None if a.high is None or b.high is None else max(a.high, b.high)
    return MRange(min(a.low, b.low), high)


@tvm.transform.module_pass(opt_level=0, name="LowerNVFP4Matmul")
class LowerNVFP4Matmul:
    """Lower ``nvfp4.matmul`` and ``nvfp4.grouped_matmul`` for ``target``, or for the current target if it is None.

    On CUDA, machine code is made here, whether or not the build is inside
    :func:`nvfp4_tvm.codegen.cuda_machine_code`; resources of the kernels are appended to ``log`` if there is one.
    A variable of a shape with an upper bound (the function attribute ``tir_var_upper_bound``, which memory
    planning relies on as well) gets kernels up to that bound.

    Raises
    ------
    TargetError
        If there are no kernels for the target.
    CompileError
        If a CUDA kernel does not compile.
    """

    def __init__(self, target: Target | None = None, log: BuildLog | None = None) -> None:
        self.target = target
        self.log = BuildLog() if log is None else log

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply to every Relax function."""
        target = self.target or Target.current(allow_none=False)
        table_for(target)
        functions = [(g, f) for g, f in mod.functions_items() if isinstance(f, relax.Function)]
        if target.kind.name != "cuda":
            return _lowered(_LowererToTIR(mod, target), functions)
        spans: dict[MatmulProblem, MRange] = {}
        for _, function in functions:
            _Spans(function, spans).visit_expr(function)
        if not spans:
            return mod
        lowerer = _LowererToMachineCode(mod, target, spans, self.log)
        lowered = _lowered(lowerer, functions)
        return attach(lowered, ((built.name, built.module) for built in lowerer.built.values()))


def _lowered(lowerer: _Lowerer, functions: list[tuple[tvm.ir.GlobalVar, relax.Function]]) -> tvm.IRModule:
    for gvar, function in functions:
        lowerer.builder_.update_func(gvar, lowerer.visit_expr(function))
    return lowerer.builder_.get()
