import logging

import pytest

from nvfp4_tvm.arch import get_arch
from nvfp4_tvm.schedules.base import MatmulProblem, MRange
from nvfp4_tvm.schedules.hopper_rule import HopperRule
from nvfp4_tvm.schedules.kernel import CudaKernel
from nvfp4_tvm.target import resolve_target

HOPPER = get_arch("sm_90")


class Rule(HopperRule[str]):
    """Two configurations with a gap between them; a kernel is its configuration's name."""

    name = "rule"

    def choices(self, N, K, arch):
        return [(MRange(17, 32), "small"), (MRange(65), "large")]

    def kernel(self, problem, config, arch):
        assert problem.M == MRange() and problem.dynamic and arch is HOPPER
        return CudaKernel(config, ())


def apply(rule, problem, target="cuda:sm_90"):
    return rule.apply(problem, resolve_target(target).target)


@pytest.mark.parametrize(
    ("M", "name"), [(MRange(17, 32), "small"), (MRange(20, 20), "small"), (MRange(65), "large")]
)
def test_the_configuration_that_covers_the_range(M, name):
    assert apply(Rule(), MatmulProblem(64, 64, M)).name == name


def test_ranges():
    assert Rule().ranges(64, 64, HOPPER) == [MRange(17, 32), MRange(65)]
    assert Rule("own").ranges(64, 64, HOPPER) == [MRange()]
    assert Rule().ranges(64, 64, get_arch("sm_89")) == Rule("own").ranges(64, 64, get_arch("sm_89")) == []


def test_a_given_configuration_serves_every_m():
    assert apply(Rule("own"), MatmulProblem(64, 64, MRange(1, 500))).name == "own"


@pytest.mark.parametrize(
    ("problem", "target", "why"),
    [
        (MatmulProblem(64, 64, MRange(17, 32)), "llvm", "target is llvm, not cuda"),
        (MatmulProblem(64, 64, MRange(17, 32)), "cuda:sm_80", "sm_80 has no wgmma, expected sm_90"),
        (MatmulProblem(64, 64, MRange(17, 32), "float32"), "cuda:sm_90", "activations are float32"),
        (MatmulProblem(64, 64, MRange(33, 64)), "cuda:sm_90", "no one configuration covers M 33..64"),
        (MatmulProblem(64, 64, MRange(17, 65)), "cuda:sm_90", "no one configuration covers M 17..65"),
    ],
)
def test_refusals(problem, target, why, caplog):
    with caplog.at_level(logging.DEBUG, "nvfp4_tvm.schedules.base"):
        assert apply(Rule(), problem, target) is None
    assert why in caplog.text
