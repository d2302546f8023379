from itertools import pairwise

import pytest
import tvm
from cpu_kernels import host
from grouped_problems import ROUTINGS, Experts, check, empty
from relax_modules import tensor

from nvfp4_tvm.schedules.base import MatmulProblem, MRange
from nvfp4_tvm.schedules.cpu_grouped import ROWS_TABLE, CPUGrouped
from nvfp4_tvm.schedules.dispatch import dispatch
from nvfp4_tvm.schedules.grouped import GroupedProblem
from nvfp4_tvm.target import cuda_target


def run(problem, rows):
    function = dispatch(problem, host())
    assert function.attrs["tirx.is_scheduled"] == 1
    compiled = tvm.compile(function, target=host())[str(function.attrs["global_symbol"])]
    experts = Experts.random(problem)
    for M in rows:
        for seed, routing in enumerate(ROUTINGS):
            operands, expected = experts.case(M, routing, seed)
            out = tensor(empty(problem, M))
            compiled(*map(tensor, operands.values()), out)
            check(out.numpy(), expected)


@pytest.mark.parametrize(
    "problem",
    [
        GroupedProblem(40, 144, experts=8),
        GroupedProblem(33, 272, x_dtype="float16", out_dtype="float32", experts=3),
        GroupedProblem(16, 16, x_dtype="float32", out_dtype="float32", experts=1),
    ],
    ids=str,
)
def test_rows_sorted_by_expert(problem):
    run(problem, (1, 2, 3, 17, 100))


@pytest.mark.parametrize("shared_x", [False, True])
def test_selected_experts(shared_x):
    M = MRange(3, 3)
    run(GroupedProblem(40, 144, M, "float32", experts=8, selected=True, shared_x=shared_x), (3,))


def test_a_constant_number_of_rows():
    run(GroupedProblem(24, 48, MRange(9, 9), experts=4), (9,))


def test_refusals():
    assert CPUGrouped().apply(MatmulProblem(64, 64), host()) is None
    assert CPUGrouped().apply(GroupedProblem(64, 64), cuda_target("sm_80").target) is None


def test_rows_of_an_expert_are_covered_without_gaps():
    assert ROWS_TABLE[0][0].low == 1 and ROWS_TABLE[-1][0].high is None
    for (lower, _), (upper, _) in pairwise(ROWS_TABLE):
        assert lower.high + 1 == upper.low
