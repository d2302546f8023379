import pytest
from hypothesis import given
from hypothesis import strategies as st
from tvm import tirx
from tvm.sym import Analyzer

from nvfp4_tvm.errors import ShapeError
from nvfp4_tvm.schedules.base import MatmulProblem
from nvfp4_tvm.schedules.grouped import GroupedProblem


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"experts": 0}, r"grouped matmul \[0, 64, 64\]: found 0 experts"),
        ({"bias": True}, "a bias or a residual cannot be fused"),
        ({"residual": True}, "a bias or a residual cannot be fused"),
        ({"shared_x": True}, "rows sorted by expert cannot share one row of x"),
        ({"experts": 2**24}, "packed words, expected fewer than 2147483648; shard the experts"),
        ({"K": 24}, "K must be a positive multiple of 16"),
        ({"x_dtype": "int8"}, "x_dtype is int8"),
    ],
)
def test_refusals(fields, message):
    with pytest.raises(ShapeError, match=message):
        GroupedProblem(**{"N": 64, "K": 64, **fields})


def test_operands_have_experts_in_front_and_indptr_last():
    found = GroupedProblem(40, 144, experts=3).operands(7)
    assert list(found) == ["x", "words", "scales", "global_scale", "indptr"]
    plain = MatmulProblem(40, 144).operands(7)
    for name in ("words", "scales", "global_scale"):
        assert found[name] == ((3, *plain[name][0]), plain[name][1])
    assert found["x"] == plain["x"] and found["indptr"] == ((4,), "int32")
    one = GroupedProblem(40, 144, experts=3, selected=True, shared_x=True).operands(2)
    assert one["x"][0] == (1, 144) and one["indptr"] == ((1, 2), "int32")
    assert GroupedProblem(40, 144, experts=3, selected=True).operands(2)["x"][0] == (2, 144)


def test_forms_and_experts_make_different_problems():
    problems = [
        MatmulProblem(64, 64),
        GroupedProblem(64, 64),
        GroupedProblem(64, 64, experts=2),
        GroupedProblem(64, 64, experts=2, selected=True),
        GroupedProblem(64, 64, experts=2, selected=True, shared_x=True),
    ]
    assert len(set(problems)) == len({problem.label for problem in problems}) == len(problems)


def max_tiles(experts, M, height, **form):
    found = GroupedProblem(16, 16, experts=experts, **form).max_tiles(tirx.const(M, "int64"), height)
    return int(Analyzer().simplify(found))


@given(st.lists(st.integers(0, 70), min_size=1, max_size=20), st.integers(1, 33))
def test_no_routing_makes_more_tiles_than_max_tiles(rows, height):
    assert sum(-(-count // height) for count in rows) <= max_tiles(len(rows), sum(rows), height)


@given(st.integers(1, 20), st.integers(1, 500), st.integers(1, 33))
def test_some_routing_makes_that_many(experts, M, height):
    begun = min(experts, M)
    rows = [1] * (begun - 1) + [M - (begun - 1)]
    assert sum(-(-count // height) for count in rows) == max_tiles(experts, M, height)


def test_of_selected_experts_each_is_a_tile():
    assert max_tiles(4, 9, 8, selected=True) == 9
