import pytest

from nvfp4_tvm.arch import ARCHS
from nvfp4_tvm.schedules.base import MRange
from nvfp4_tvm.schedules.gemm_wgmma_config import WgmmaConfig
from nvfp4_tvm.schedules.space_wgmma import START, WgmmaSpace

SPACE, SM_90 = WgmmaSpace(), ARCHS["sm_90"]
LARGE = WgmmaConfig(256, 2, 3, 3, 1)


def test_only_hopper_has_it():
    config = SPACE.candidates(4096, 4096, MRange(17, 32), SM_90)[0]
    assert SPACE.legal(config, 4096, 4096, MRange(17, 32), SM_90)
    for arch in ("sm_80", "sm_86", "sm_89"):
        assert not SPACE.legal(config, 4096, 4096, MRange(17, 32), ARCHS[arch])
        assert SPACE.candidates(4096, 4096, MRange(17, 32), ARCHS[arch]) == []


def test_a_tile_is_half_full_at_least():
    assert all(config.tokens < 64 for config in SPACE.candidates(4096, 4096, MRange(17, 32), SM_90))
    assert SPACE.suits(LARGE, 4096, 4096, MRange(17)) and not SPACE.suits(LARGE, 4096, 4096, MRange(17, 128))


def test_the_model_against_the_measured_time():
    """2.89 ms for M = 4096 of 43008 x 5376 with tiles of 256 tokens (H200)."""
    assert SPACE.time(LARGE, 43008, 5376, 4096, SM_90) == pytest.approx(2890, rel=0.05)


def test_a_small_weight_takes_the_launches():
    assert START < SPACE.time(WgmmaConfig(32, 1, 4, 4, 2, residents=3), 128, 128, 17, SM_90) < START + 2
