import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvfp4_tvm.arch import get_arch
from nvfp4_tvm.schedules.gemm_cluster_choice import choices
from nvfp4_tvm.schedules.gemm_wgmma_choice import LOWEST_M

HOPPER = get_arch("sm_90")
SHAPES = st.tuples(st.integers(1, 50000), st.integers(1, 2000).map(lambda k: 16 * k))


@settings(deadline=None, max_examples=50)
@given(SHAPES)
def test_ranges_are_in_order_and_configurations_fit(shape):
    low = LOWEST_M
    for m_range, config in choices(*shape, HOPPER):
        assert low <= m_range.low <= m_range.high <= 128
        low = m_range.high + 1
        # setmaxnreg: no more than the block got at its launch
        given_up = config.registers - config.producer_registers
        assert 0 <= given_up >= (config.consumer_registers - config.registers) * config.warpgroups
        assert config.consumer_registers % 8 == config.producer_registers % 8 == 0


@pytest.mark.parametrize(
    ("N", "K", "M", "served"),
    [
        (3840, 15360, 48, True),
        (15360, 3840, 64, True),
        (4096, 4096, 48, True),
        (21504, 5376, 64, False),  # too many tiles for one round of clusters
        (43008, 5376, 128, False),
        (4096, 4096, 1024, False),
    ],
)
def test_weights_of_few_tiles_are_served(N, K, M, served):
    assert any(M in m_range for m_range, _ in choices(N, K, HOPPER)) == served
