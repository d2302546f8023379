"""Experts on a CPU: the kernels of weights without, one expert after the other, on views of its arrays.

Which of them runs is decided for each expert by its number of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from tvm.target import Target
from tvm.tirx import Buffer, Expr, PrimFunc
from tvm.tirx.script.builder import ir as T

from nvfp4_tvm.schedules.base import KernelRule, MatmulProblem, MRange
from nvfp4_tvm.schedules.cpu_common import Body, CPURule, arguments, kernel, named, view
from nvfp4_tvm.schedules.cpu_gemm import CPUGemm
from nvfp4_tvm.schedules.cpu_gemm_amx import CPUGemmAMX
from nvfp4_tvm.schedules.cpu_gemv import CPUGemv
from nvfp4_tvm.schedules.grouped import GroupedProblem

#: Rows of an expert, in order and without gaps, with the rules to try in order. Fewer ranges than
#: :data:`.cpu.CPU_TABLE` has: one function holds all their kernels.
ROWS_TABLE: tuple[tuple[MRange, tuple[CPURule, ...]], ...] = (
    (MRange(1, 1), (CPUGemv(),)),
    (MRange(2, 4), (CPUGemv(),)),
    (MRange(5), (CPUGemmAMX(), CPUGemm())),
)


class CPUGrouped(KernelRule):
    """Any problem with experts on llvm targets."""

    name = "cpu-grouped"

    def apply(self, problem: MatmulProblem, target: Target) -> PrimFunc | None:
        """See `KernelRule.apply`."""
        if not isinstance(problem, GroupedProblem):
            return self.refuse(problem, "there are no experts")
        if target.kind.name != "llvm":
            return self.refuse(problem, f"the target is {target.kind.name}, not llvm")
        emit = _selected if problem.selected else _grouped
        return kernel(problem, "nvfp4_cpu_grouped", partial(emit, problem, target))


def _of_one_expert(problem: GroupedProblem, M: MRange) -> MatmulProblem:
    return MatmulProblem(problem.N, problem.K, M, problem.x_dtype, problem.out_dtype)


def _body(problem: MatmulProblem, rules: Sequence[CPURule], target: Target) -> Body:
    """Return the body of the first rule that applies; the last of them always does."""
    bodies = (rule.body(problem, target) for rule in rules)
    return next(body for body in bodies if body is not None)


def _expert(
    problem: GroupedProblem, buffers: dict[str, Buffer], expert: Expr, first: Expr, rows: Expr | int
) -> dict[str, Buffer]:
    """Return the buffers of one expert: its weight, and ``rows`` rows of x and out from ``first`` on."""
    views = {}
    for name in ("words", "scales", "global_scale"):
        shape = [int(extent) for extent in buffers[name].shape[1:]]
        size = 1
        for extent in shape:
            size *= extent
        views[name] = view(f"{name}_of_expert", buffers[name], tuple(shape), T.cast(expert, "int64") * size)
    N, K = problem.N, problem.K
    views["x"] = view("x_of_expert", buffers["x"], (rows, K), 0 if problem.shared_x else first * K)
    views["out"] = view("out_of_expert", buffers["out"], (rows, N), first * N)
    return views


def _selected(problem: GroupedProblem, target: Target, buffers: dict[str, Buffer], M: Expr | int) -> None:
    (_, rules), one = ROWS_TABLE[0], _of_one_expert(problem, MRange(1, 1))
    body = _body(one, rules, target)
    with T.serial(M) as m:
        expert = named("expert", T.Bind(buffers["indptr"][0, m]))
        body(arguments(one, 1, _expert(problem, buffers, expert, T.cast(m, "int64"), 1)))


def _grouped(problem: GroupedProblem, target: Target, buffers: dict[str, Buffer], M: Expr | int) -> None:
    indptr = buffers["indptr"]
    with T.serial(problem.experts) as e:
        first = named("first", T.Bind(T.cast(indptr[e], "int64")))
        rows = named("rows", T.Bind(T.cast(indptr[e + 1], "int64") - first))
        for m_range, rules in ROWS_TABLE:
            inside = rows >= m_range.low
            if m_range.high is not None:
                inside = T.And(inside, rows <= m_range.high)
            asked = _of_one_expert(problem, m_range)
            with T.If(inside), T.Then():
                # A constant number of rows where the range holds one
                count = rows if m_range.static is None else m_range.static
                views = _expert(problem, buffers, e, first, count)
                _body(asked, rules, target)(arguments(asked, count, views))
