from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvfp4_tvm.arch import get_arch
from nvfp4_tvm.schedules.gemm_wgmma_choice import LOWEST_M, busiest_units, choices, configurations
from nvfp4_tvm.schedules.gemm_wgmma_ss_config import SharedWgmmaConfig

HOPPER = get_arch("sm_90")
SHAPES = st.tuples(st.integers(1, 50000), st.integers(1, 2000).map(lambda k: 16 * k))


@settings(deadline=None, max_examples=50)
@given(SHAPES)
def test_every_m_has_one_configuration(shape):
    found = choices(*shape, HOPPER)
    at = LOWEST_M
    for m_range, _ in found:
        assert m_range.low == at
        at = None if m_range.high is None else m_range.high + 1
    assert at is None
    assert len({config.name for _, config in found}) <= 8
    assert all(a != b for (_, a), (_, b) in pairwise(found))


@settings(deadline=None, max_examples=50)
@given(SHAPES)
def test_configurations_fit_the_processor(shape):
    for _, config in choices(*shape, HOPPER):
        assert config.shared_bytes <= HOPPER.shared_per_block
        if isinstance(config, SharedWgmmaConfig):
            continue
        given_up = config.registers - config.producer_registers
        taken = (config.consumer_registers - config.registers) * config.warpgroups
        # setmaxnreg: no more than the block got at its launch, and a producer that gives registers up
        assert 0 <= given_up and taken <= given_up
        assert config.consumer_registers % 8 == config.producer_registers % 8 == 0
        assert config.residents * config.threads * config.registers <= HOPPER.registers_per_sm


@pytest.mark.parametrize(
    ("N", "K", "M", "tokens", "shared"),
    [
        (21504, 5376, 128, 128, False),
        (21504, 5376, 192, 192, True),
        (21504, 5376, 300, 160, False),
        (21504, 5376, 482, 256, True),
        (21504, 5376, 777, 208, True),
        (4096, 4096, 482, 256, True),
        (21504, 5376, 100000, 256, True),
    ],
)
def test_tiles_fit_the_rounds(N, K, M, tokens, shared):
    (config,) = (config for m_range, config in choices(N, K, HOPPER) if M in m_range)
    assert config.tokens == tokens and isinstance(config, SharedWgmmaConfig) == shared


def test_busiest_units():
    wide, narrow = SharedWgmmaConfig(256, 4, 2, 1), configurations(4096, 4096)
    # 128 tiles of 32 units on 132 multiprocessors: whole tiles
    assert busiest_units(4096, 4096, 512, narrow[128], 132) == 32
    # 64 tiles: two blocks each, and handing over
    assert busiest_units(4096, 4096, 256, narrow[128], 132) == 16 + narrow[128].overhead
    # 336 tiles of 42 units: one round of whole tiles, then 204 tiles cut into 132 runs
    assert busiest_units(21504, 5376, 512, wide, 132) == 42 + -(-204 * 42 // 132) + wide.overhead
