"""Which kernel runs for which M: one table an architecture; for CPUs, one PrimFunc that branches on M.

Tuning records (:mod:`.tuned`) come before the table; where they say nothing, its families choose by themselves.

The branch is host code around the kernels, so that one function per (N, K) serves prefill and decode. That of CUDA
kernels is in :mod:`nvfp4_tvm.codegen.host`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

from tvm import s_tir, tirx
from tvm.target import Target
from tvm.tirx import PrimFunc

from nvfp4_tvm.arch import SUPPORTED, Arch, get_arch
from nvfp4_tvm.errors import TargetError
from nvfp4_tvm.schedules.base import Kernel, KernelRule, MatmulProblem, MRange
from nvfp4_tvm.schedules.cpu import CPU_TABLE
from nvfp4_tvm.schedules.gemm_cluster import GemmCluster
from nvfp4_tvm.schedules.gemm_mma import GemmMma
from nvfp4_tvm.schedules.gemm_plain import PlainGemm
from nvfp4_tvm.schedules.gemm_wgmma import GemmWgmma
from nvfp4_tvm.schedules.gemv import Gemv
from nvfp4_tvm.schedules.grouped import GroupedProblem
from nvfp4_tvm.schedules.grouped_table import grouped_table
from nvfp4_tvm.schedules.spaces import space_of
from nvfp4_tvm.schedules.tuned import choices

logger = logging.getLogger(__name__)

Table = Sequence[tuple[MRange, Sequence[KernelRule]]]

#: The GEMV family leaves M above 16, 24 or 32 to the GEMMs, depending on the weight; float32 has the plain one.
_AMPERE: Table = ((MRange(), (Gemv(), GemmMma(), PlainGemm())),)
_HOPPER: Table = ((MRange(), (Gemv(), GemmCluster(), GemmWgmma(), GemmMma(), PlainGemm())),)

#: Ranges of M, in order and without gaps, with the rules to try in order: by kind of target, or by architecture.
#: A rule with several configurations splits its range further (:class:`Ranged`).
TABLES: dict[str, Table] = {
    "llvm": CPU_TABLE,
    "sm_80": _AMPERE,
    "sm_86": _AMPERE,
    "sm_89": _AMPERE,
    "sm_90": _HOPPER,
}


@runtime_checkable
class Ranged(Protocol):
    """A rule with several configurations for a range of M: it says where they change."""

    def ranges(self, N: int, K: int, arch: Arch) -> Sequence[MRange]:
        """Return the ranges of M that have one configuration each, in order; others are not for this rule."""


def table_for(target: Target, problem: MatmulProblem | None = None) -> Table:
    """Return the table of a target, for a problem with experts that of its own.

    Raises
    ------
    TargetError
        If no kernels exist for the target.
    """
    kind = target.kind.name
    if isinstance(problem, GroupedProblem) and kind in ("cuda", "llvm"):
        return grouped_table(problem, kind)
    if kind == "cuda":
        return TABLES[get_arch(str(target.attrs["arch"])).name]
    if kind not in TABLES:
        raise TargetError(f"target {kind}: no NVFP4 kernels; supported are cuda ({SUPPORTED}), llvm")
    return TABLES[kind]


def intersect(a: MRange, b: MRange) -> MRange | None:
    """Return the values of M in both ranges, or None."""
    low = max(a.low, b.low)
    high = min((x.high for x in (a, b) if x.high is not None), default=None)
    return None if high is not None and high < low else MRange(low, high)


def kernels_for(problem: MatmulProblem, target: Target) -> list[tuple[MRange, KernelRule, Kernel]]:
    """Return the kernels that together cover ``problem.M``, lowest range first.

    The active tuning database (:meth:`.records.Database.active`) is consulted before the shipped one.

    Raises
    ------
    TargetError
        If no rule applies to a part of the range.
    """
    chosen = []
    for m_range, rules in table_for(target, problem):
        part = intersect(m_range, problem.M)
        if part is None:
            continue
        asked = replace(problem, M=part, dynamic=problem.static_M is None)
        for piece, rule in tuned_rules(asked, target):
            kernel = None if rule is None else rule.apply(replace(asked, M=piece), target)
            if rule is None or kernel is None:
                chosen += _choose(rules, replace(asked, M=piece), target)
            else:
                chosen.append((piece, rule, kernel))
    return chosen


def tuned_rules(problem: MatmulProblem, target: Target) -> Iterator[tuple[MRange, KernelRule | None]]:
    """Cut the problem's range where tuning records change, with the family each piece gets; None without one."""
    if target.kind.name != "cuda" or isinstance(problem, GroupedProblem):
        yield problem.M, None
        return
    at: int | None = problem.M.low
    for choice in choices(problem, get_arch(str(target.attrs["arch"])).name):
        part = None if at is None else intersect(choice.M, problem.M)
        if part is None or at is None:
            continue
        if at < part.low:
            yield MRange(at, part.low - 1), None
        yield part, space_of(choice.family).rule(choice.config)
        at = None if part.high is None or part.high == problem.M.high else part.high + 1
    if at is not None:
        yield MRange(at, problem.M.high), None


def _choose(
    rules: Sequence[KernelRule], problem: MatmulProblem, target: Target
) -> list[tuple[MRange, KernelRule, Kernel]]:
    """Cover one range with the first rule, and what it leaves with the next ones."""
    if not rules:
        raise TargetError(f"target {target}: no kernel applies to {problem}")
    first, *rest = rules
    chosen = []
    for part, own in _parts(first, problem, target):
        kernel = first.apply(replace(problem, M=part), target) if own else None
        if kernel is not None:
            chosen.append((part, first, kernel))
        else:
            chosen += _choose(rest, replace(problem, M=part), target)
    return chosen


def _parts(rule: KernelRule, problem: MatmulProblem, target: Target) -> Iterator[tuple[MRange, bool]]:
    """Split the problem's range where the rule's configuration changes; also say whether it has one."""
    at: int | None = problem.M.low
    if isinstance(rule, Ranged):
        for m_range in rule.ranges(problem.N, problem.K, get_arch(str(target.attrs["arch"]))):
            part = None if at is None else intersect(m_range, problem.M)
            if part is None or at is None:
                continue
            if at < part.low:
                yield MRange(at, part.low - 1), False
            yield part, True
            at = None if part.high is None or part.high == problem.M.high else part.high + 1
        if at is not None:
            yield MRange(at, problem.M.high), False
    else:
        yield problem.M, True


def dispatch(problem: MatmulProblem, target: Target) -> PrimFunc:
    """Return one PrimFunc for all of ``problem.M`` on a CPU, branching on M where several kernels cover it.

    Raises
    ------
    TargetError
        If the target's kernels are no PrimFuncs: use :func:`nvfp4_tvm.codegen.matmul.build_matmul` then.
    """
    kernels = kernels_for(problem, target)
    functions = [(part, kernel) for part, _, kernel in kernels if isinstance(kernel, PrimFunc)]
    if len(functions) != len(kernels):
        raise TargetError(
            f"target {target.kind.name}: its kernels are built by build_matmul, not one PrimFunc"
        )
    logger.info("%s: %s", problem, ", ".join(f"M {part}: {rule.name}" for part, rule, _ in kernels))
    *lower, (_, function) = functions
    if problem.static_M is not None:
        return function
    M = function.params[0].shape[0]
    body = function.body
    for part, kernel in reversed(lower):
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
