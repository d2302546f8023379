import itertools

import cpu_kernels

from nvfp4_tvm.schedules.base import MatmulProblem, first_match
from nvfp4_tvm.schedules.cpu import CPU_TABLE


def test_ranges_follow_each_other_and_have_no_end():
    assert CPU_TABLE[0][0].low == 1
    for (before, _), (after, _) in itertools.pairwise(CPU_TABLE):
        assert after.low == before.high + 1
    assert CPU_TABLE[-1][0].high is None


def test_every_range_has_a_kernel():
    for m_range, rules in CPU_TABLE:
        assert first_match(rules, MatmulProblem(24, 48, m_range), cpu_kernels.host()) is not None
