import logging

import pytest
from tvm.target import Target

from nvfp4_tvm.errors import ShapeError
from nvfp4_tvm.schedules.base import KernelRule, MatmulProblem, MRange, first_match, gemm_arguments


@pytest.mark.parametrize(("low", "high"), [(0, 3), (5, 4), (-1, None)])
def test_bad_ranges_are_refused(low, high):
    with pytest.raises(ShapeError, match="expected 1 <= low <= high"):
        MRange(low, high)


def test_range():
    assert MRange(3, 3).static == 3 and MRange(3).static is None
    assert 3 in MRange(3) and 10**9 in MRange(3) and 2 not in MRange(3) and 9 not in MRange(1, 8)
    assert [str(r) for r in (MRange(1, 1), MRange(2, 8), MRange(9))] == ["1", "2..8", "9.."]


def test_static_m_of_a_problem():
    assert MatmulProblem(8, 16, MRange(1, 1)).static_M == 1
    assert MatmulProblem(8, 16, MRange(1, 1), dynamic=True).static_M is None
    assert MatmulProblem(8, 16).static_M is None


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"N": 8, "K": 24}, "K must be a positive multiple of 16"),
        ({"N": 8, "K": 16, "x_dtype": "int8"}, "x_dtype is int8"),
        ({"N": 8, "K": 16, "out_dtype": "float64"}, "out_dtype is float64"),
    ],
)
def test_bad_problems_are_refused(arguments, match):
    with pytest.raises(ShapeError, match=match):
        MatmulProblem(**arguments)


class _Rule(KernelRule):
    def __init__(self, name, result):
        self.name, self.result, self.asked = name, result, 0

    def apply(self, problem, target):
        self.asked += 1
        return self.refuse(problem, "by choice") if self.result is None else self.result


def test_first_match_wins(caplog):
    kernel = object()
    rules = [_Rule("a", None), _Rule("b", kernel), _Rule("c", object())]
    with caplog.at_level(logging.DEBUG):
        assert first_match(rules, MatmulProblem(8, 16), None) == (rules[1], kernel)
    assert "a does not apply" in caplog.text and "by choice" in caplog.text
    assert rules[2].asked == 0
    assert first_match(rules[:1], MatmulProblem(8, 16), None) is None


def test_arguments_of_a_gemm():
    plain = MatmulProblem(64, 64)
    assert gemm_arguments(plain) == ("x", "words", "scales", "global_scale", "out")
    full = MatmulProblem(64, 64, bias=True, residual=True)
    names = ("tiles", "words", "scales", "global_scale", "bias", "residual", "sums", "out")
    assert gemm_arguments(full, "tiles", ("sums",)) == names


def test_problems_are_told_in_a_few_words():
    problem = MatmulProblem(96, 48, MRange(1, 8), "float16", "float32", bias=True, activation="silu_mul")
    assert str(MatmulProblem(96, 48)) == "matmul_96x48, bfloat16, M 1.."
    assert str(problem) == "matmul_96x48, float16 to float32, bias, silu_mul, M 1..8"
    assert repr(problem) != repr(MatmulProblem(96, 48))


@pytest.mark.parametrize(
    ("target", "dtype", "why"),
    [
        ({"kind": "llvm"}, "bfloat16", "target is llvm, not cuda"),
        ({"kind": "cuda", "arch": "sm_75"}, "bfloat16", "architecture sm_75 is not in the table"),
        (
            {"kind": "cuda", "arch": "sm_89"},
            "float32",
            "activations are float32, expected bfloat16 or float16",
        ),
        ({"kind": "cuda", "arch": "sm_89"}, "float16", None),
        ({"kind": "cuda", "arch": "sm_90a"}, "bfloat16", None),
    ],
)
def test_tensor_core_families_share_their_conditions(caplog, target, dtype, why):
    class Family(KernelRule):
        name = "family"

        def apply(self, problem, target):
            return self.arch_of(problem, target)

    with caplog.at_level(logging.DEBUG, "nvfp4_tvm"):
        found = Family().apply(MatmulProblem(64, 64, x_dtype=dtype), Target(target))
    assert (found is None) == (why is not None)
    assert why is None or why in caplog.text
