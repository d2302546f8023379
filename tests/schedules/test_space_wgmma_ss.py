from itertools import pairwise

import pytest

from nvfp4_tvm.arch import ARCHS
from nvfp4_tvm.schedules.base import MRange
from nvfp4_tvm.schedules.gemm_wgmma_choice import modeled_time
from nvfp4_tvm.schedules.gemm_wgmma_ss_config import SharedWgmmaConfig
from nvfp4_tvm.schedules.model import usual_card
from nvfp4_tvm.schedules.space_wgmma_ss import SharedWgmmaSpace

SPACE, SM_90 = SharedWgmmaSpace(), ARCHS["sm_90"]


def test_only_hopper_has_it():
    config = SPACE.candidates(4096, 4096, MRange(193, 256), SM_90)[0]
    assert SPACE.legal(config, 4096, 4096, MRange(193, 256), SM_90)
    for arch in ("sm_80", "sm_86", "sm_89"):
        assert not SPACE.legal(config, 4096, 4096, MRange(193, 256), ARCHS[arch])


def test_a_tile_is_half_full_at_least():
    config = SharedWgmmaConfig(256, 4, 2, 1)
    assert SPACE.suits(config, 4096, 4096, MRange(17)) and SPACE.suits(config, 4096, 4096, MRange(65, 129))
    assert not SPACE.suits(config, 4096, 4096, MRange(65, 128))


def test_the_model_is_the_family_s():
    config = SharedWgmmaConfig(256, 4, 2, 1)
    expected = modeled_time(43008, 5376, 4096, config, usual_card(SM_90).sms)
    assert SPACE.time(config, 43008, 5376, 4096, SM_90) == pytest.approx(expected)


def test_times_between_the_measured_tiles():
    """A tile of any size takes longer than a narrower one, but for those that wait for the decoder."""
    tokens = SPACE.decisions["tokens"]
    configs = [SharedWgmmaConfig(t, 4, 2, 1) for t in tokens]
    times = [SPACE.time(config, 128, 1280, t, SM_90) for config, t in zip(configs, tokens, strict=True)]
    assert all(wider >= time * (1 - 1e-9) for time, wider in pairwise(times))
    assert times[tokens.index(128)] == pytest.approx(times[tokens.index(192)])
    assert times[tokens.index(224)] == pytest.approx((times[-1] * 16 + times[tokens.index(208)] * 32) / 48)
