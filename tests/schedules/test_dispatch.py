from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import tvm
from tvm import tirx

from nvfp4_tvm.errors import TargetError
from nvfp4_tvm.schedules import dispatch as dispatch_module
from nvfp4_tvm.schedules.base import KernelRule, MatmulProblem, MRange
from nvfp4_tvm.schedules.dispatch import TABLES, dispatch, intersect, kernels_for
from nvfp4_tvm.target import resolve_target

LLVM = resolve_target("llvm").target
PROBLEM = MatmulProblem(48, 64, x_dtype="float32", out_dtype="float32")


@pytest.mark.parametrize("kind", sorted(TABLES))
def test_tables_cover_every_m_once(kind):
    ranges = [m_range for m_range, _ in TABLES[kind]]
    assert ranges[0].low == 1 and ranges[-1].high is None
    for lower, upper in pairwise(ranges):
        assert lower.high + 1 == upper.low


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (MRange(1, 8), MRange(4), MRange(4, 8)),
        (MRange(), MRange(), MRange()),
        (MRange(1, 3), MRange(4, 9), None),
        (MRange(5), MRange(7, 7), MRange(7, 7)),
    ],
)
def test_intersect(a, b, expected):
    assert intersect(a, b) == intersect(b, a) == expected


@pytest.mark.parametrize(
    ("cpu", "M", "expected"),
    [
        *(("haswell", M, "cpu-gemv") for M in (1, 2, 5, 8)),
        *(("haswell", M, "cpu-gemm") for M in (9, 300)),
        *(("sapphirerapids", M, "cpu-gemv") for M in (1, 2, 4)),
        *(("sapphirerapids", M, "cpu-gemm-amx") for M in (5, 8, 9, 300)),
    ],
)
def test_static_m_gets_the_kernel_of_its_range(cpu, M, expected):
    target = resolve_target(f"llvm -mcpu={cpu} -mtriple=x86_64-linux-gnu").target
    ((_, rule, function),) = kernels_for(replace(PROBLEM, M=MRange(M, M)), target)
    assert rule.name == expected
    assert int(function.params[0].shape[0]) == M


def test_dispatch_keeps_one_symbolic_m():
    function = dispatch(PROBLEM, LLVM)
    assert isinstance(function.params[0].shape[0], tirx.Var)
    assert function.params[0].shape[0].same_as(function.params[-1].shape[0])


class _Mark(KernelRule):
    """A kernel that writes its mark everywhere, so that a test sees which branch ran."""

    def __init__(self, mark):
        self.name, self.mark = f"mark{mark}", float(mark)

    def apply(self, problem, target):
        from tvm import te

        from nvfp4_tvm.schedules.gemm_plain import matmul_prim_func

        arguments = matmul_prim_func(problem).params
        x, *rest, _ = (
            te.placeholder([problem.static_M or tirx.Var("M", "int64"), problem.K], "float32")
            if i == 0
            else te.placeholder(a.shape, str(a.dtype))
            for i, a in enumerate(arguments)
        )
        out = te.compute((x.shape[0], problem.N), lambda m, n: x[m, 0] * 0.0 + self.mark)
        return te.create_prim_func([x, *rest, out])


def test_each_m_takes_the_branch_of_its_range(monkeypatch):
    ranges = [MRange(1, 1), MRange(2, 4), MRange(5, 16), MRange(17)]
    table = tuple((m_range, (_Mark(i),)) for i, m_range in enumerate(ranges))
    monkeypatch.setitem(dispatch_module.TABLES, "llvm", table)
    function = tvm.compile(
        tvm.IRModule({"main": dispatch(PROBLEM, LLVM).with_attr("global_symbol", "main")}), LLVM
    )
    packed = [
        tvm.runtime.tensor(np.zeros([int(e) for e in p.shape], str(p.dtype)))
        for p in dispatch(PROBLEM, LLVM).params[1:-1]
    ]
    for M in range(1, 301):
        out = tvm.runtime.tensor(np.full((M, PROBLEM.N), np.nan, np.float32))
        function["main"](tvm.runtime.tensor(np.ones((M, PROBLEM.K), np.float32)), *packed, out)
        expected = next(i for i, m_range in enumerate(ranges) if M in m_range)
        assert (out.numpy() == expected).all(), M


def test_an_empty_batch_does_nothing():
    function = tvm.compile(
        tvm.IRModule({"main": dispatch(PROBLEM, LLVM).with_attr("global_symbol", "main")}), LLVM
    )
    arrays = [
        np.zeros([0 if isinstance(e, tirx.Var) else int(e) for e in p.shape], str(p.dtype))
        for p in dispatch(PROBLEM, LLVM).params
    ]
    function["main"](*map(tvm.runtime.tensor, arrays))


def test_a_range_nobody_covers_is_refused(monkeypatch):
    class Never(KernelRule):
        name = "never"

        def apply(self, problem, target):
            return self.refuse(problem, "on principle")

    monkeypatch.setitem(dispatch_module.TABLES, "llvm", ((MRange(), (Never(),)),))
    with pytest.raises(TargetError, match="no kernel applies"):
        dispatch(PROBLEM, LLVM)
