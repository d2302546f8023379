"""Which kernel runs for which M: one table a target kind, and one PrimFunc that branches on a symbolic M.

The branch is host code around the kernels, so that one function per (N, K) serves prefill and decode.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from tvm import s_tir, tirx
from tvm.target import Target
from tvm.tirx import PrimFunc

from nvfp4_tvm.errors import TargetError
from nvfp4_tvm.schedules.base import KernelRule, MatmulProblem, MRange, first_match
from nvfp4_tvm.schedules.cpu import CPU_TABLE
from nvfp4_tvm.schedules.gemm_plain import PlainGemm

logger = logging.getLogger(__name__)

Table = Sequence[tuple[MRange, Sequence[KernelRule]]]

#: Ranges of M, in order and without gaps, with the rules to try in order.
TABLES: dict[str, Table] = {
    "llvm": CPU_TABLE,
    "cuda": ((MRange(), (PlainGemm(),)),),
}


def table_for(target: Target) -> Table:
    """Return the table of a target.

    Raises
    ------
    TargetError
        If no kernels exist for the kind of target.
    """
    if target.kind.name not in TABLES:
        raise TargetError(
            f"target {target.kind.name}: no NVFP4 kernels; supported are {', '.join(sorted(TABLES))}"
        )
    return TABLES[target.kind.name]


def intersect(a: MRange, b: MRange) -> MRange | None:
    """Return the values of M in both ranges, or None."""
    low = max(a.low, b.low)
    high = min((x.high for x in (a, b) if x.high is not None), default=None)
    return None if high is not None and high < low else MRange(low, high)


def kernels_for(problem: MatmulProblem, target: Target) -> list[tuple[MRange, KernelRule, PrimFunc]]:
    """Return the kernels that together cover ``problem.M``, lowest range first.

    Raises
    ------
    TargetError
        If no rule applies to a part of the range.
    """
    chosen = []
    for m_range, rules in table_for(target):
        part = intersect(m_range, problem.M)
        if part is None:
            continue
        match = first_match(rules, replace(problem, M=part, dynamic=problem.static_M is None), target)
        if match is None:
            raise TargetError(f"target {target}: no kernel applies to {replace(problem, M=part)}")
        chosen.append((part, *match))
    return chosen


def dispatch(problem: MatmulProblem, target: Target) -> PrimFunc:
    """Return one PrimFunc for all of ``problem.M``, branching on M where several kernels cover it."""
    kernels = kernels_for(problem, target)
    logger.info("%s: %s", problem, ", ".join(f"M {part}: {rule.name}" for part, rule, _ in kernels))
    *lower, (_, _, function) = kernels
    if problem.static_M is not None:
        return function
    M = function.params[0].shape[0]
    body = function.body
    for part, _, kernel in reversed(lower):
        body = tirx.IfThenElse(
            M <= tirx.const(part.high, "int64"), _with_params_of(kernel, function).body, body
        )
    # An empty batch has no rows to read and no grid to launch.
    body = tirx.IfThenElse(M >= tirx.const(1, "int64"), body, None)
    body = s_tir.SBlockRealize([], True, s_tir.SBlock([], [], [], "root", body))
    # Without the attribute the branch is hoisted out of, or duplicated inside, the kernels it chooses between.
    return function.with_body(body).with_attr("tirx.HoistIfThenElseExprWithBlock", 1)


def _with_params_of(kernel: PrimFunc, other: PrimFunc) -> PrimFunc:
    """Rewrite ``kernel`` to use the parameters of ``other``, symbolic M included.

    ``PrimFunc.specialize`` replaces a buffer parameter by another parameter of the same function, so the other
    function's parameters are put in front first.
    """
    both = PrimFunc([*other.params, *kernel.params], kernel.body)
    return both.specialize(dict(zip(kernel.params, other.params, strict=True)))
