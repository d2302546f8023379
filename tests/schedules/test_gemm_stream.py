import logging
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvfp4_tvm.arch import ARCHS
from nvfp4_tvm.schedules.base import MatmulProblem, MRange
from nvfp4_tvm.schedules.gemm_stream import GemmStream, choices
from nvfp4_tvm.schedules.gemm_stream_config import StreamConfig
from nvfp4_tvm.target import cuda_target, resolve_target

SM_8X = ["sm_80", "sm_86", "sm_89"]


@settings(deadline=None, max_examples=200)
@given(
    st.integers(1, 300_000),
    st.integers(1, 4096).map(lambda groups: 16 * groups),
    st.sampled_from([ARCHS[name] for name in SM_8X]),
)
def test_ranges_are_in_order_without_gaps_and_their_configurations_fit(N, K, arch):
    found = choices(N, K, arch)
    assert found == choices(N, K, arch)
    assert [m_range for m_range, _ in found] == GemmStream().ranges(N, K, arch)
    assert found[0][0].low == 17
    for (one, _), (two, _) in pairwise(found):
        assert one.high is not None and two.low == one.high + 1
    for _, config in found:
        assert config.shared_bytes <= arch.shared_per_block
        assert config.shared_bytes <= ARCHS["sm_86"].shared_per_block


@pytest.mark.parametrize(
    ("rule", "problem", "target", "why"),
    [
        (GemmStream(), MatmulProblem(64, 64, MRange(17, 32)), "llvm", "not cuda"),
        (GemmStream(), MatmulProblem(64, 64, MRange(17, 32), "float32"), "cuda:sm_89", "float32"),
        (GemmStream(), MatmulProblem(64, 64, MRange(1, 32)), "cuda:sm_89", "no one configuration"),
        (GemmStream(), MatmulProblem(64, 64, MRange(17, 5000)), "cuda:sm_89", "no one configuration"),
        (GemmStream(StreamConfig(128, 8, 2, 4, 1, 1)), MatmulProblem(64, 64), "cuda:sm_89", "shared memory"),
    ],
)
def test_refusals_say_why(rule, problem, target, why, caplog):
    with caplog.at_level(logging.DEBUG, "nvfp4_tvm.schedules.base"):
        assert rule.apply(problem, resolve_target(target).target) is None
    assert why in caplog.text


def test_every_range_gets_its_kernel():
    for name in SM_8X:
        for m_range, config in choices(4096, 4096, ARCHS[name]):
            problem = MatmulProblem(4096, 4096, m_range)
            kernel = GemmStream().apply(problem, cuda_target(name).target)
            assert kernel.name == f"gemm_stream_{config.name}"
            assert kernel.launches[-1].arguments[0] == "x" and kernel.launches[-1].arguments[-1] == "out"


def test_a_given_configuration_serves_every_m():
    config = StreamConfig(32, 4, 2, 3, 2, 1)
    rule = GemmStream(config)
    assert rule.ranges(64, 64, ARCHS["sm_89"]) == [MRange()]
    assert config.name in rule.apply(MatmulProblem(64, 64), cuda_target("sm_89").target).name
