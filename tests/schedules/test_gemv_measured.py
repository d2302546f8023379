"""The table of GEMV configurations: legal everywhere, and used."""

import pytest

from nvfp4_tvm.arch import ARCHS
from nvfp4_tvm.schedules.gemv import Gemv, choose
from nvfp4_tvm.schedules.gemv_measured import MEASURED


@pytest.mark.parametrize("arch", ARCHS.values(), ids=lambda arch: arch.name)
@pytest.mark.parametrize("shape", MEASURED, ids=str)
def test_entries_are_used_and_fit(shape, arch):
    bounds = list(MEASURED[shape])
    assert bounds == sorted(bounds), "in order: the first bound that is not below M is taken"
    ranges = Gemv().ranges(*shape, arch)
    assert bounds[-1] == ranges[-1].high and set(bounds) <= {m_range.high for m_range in ranges}
    for high, (KS, NT, D, *resident) in MEASURED[shape].items():
        config = choose(*shape, high, arch)
        assert (config.KS, config.NT, config.D, config.resident) == (KS, NT, D, *(resident or [0]))
        assert arch.blocks_per_sm(config.threads, 64, config.shared_bytes) >= 1
        assert config.blocks(shape[0]) * config.rows >= shape[0]
        assert config.steps(shape[1]) * config.KS * 128 >= shape[1]


def test_other_weights_get_the_models_choice():
    assert (4096, 4080) not in MEASURED
    assert choose(4096, 4080, 8, ARCHS["sm_90"]).KS >= 1
