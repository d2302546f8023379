import pytest

from nvfp4_tvm.arch import ARCHS
from nvfp4_tvm.schedules.base import MRange
from nvfp4_tvm.schedules.gemv import Gemv, candidates
from nvfp4_tvm.schedules.gemv_measured import MEASURED
from nvfp4_tvm.schedules.model import COPY_SHARE, floor_us, usual_card
from nvfp4_tvm.schedules.space_gemv import START, GemvSpace

SPACE, SM_90 = GemvSpace(), ARCHS["sm_90"]


def test_measured_configurations_of_the_gemv_family_are_legal():
    for N, K in MEASURED:
        for M in Gemv().ranges(N, K, SM_90):
            default = SPACE.default(N, K, M, SM_90)
            assert SPACE.legal(default, N, K, M, SM_90), (N, K, M)
    # More rows of a large weight are left to the GEMMs
    assert SPACE.default(43008, 5376, MRange(17, 24), SM_90) is None


def test_rows_are_kept_to():
    config = SPACE.candidates(4096, 4096, MRange(9, 16), SM_90)[0]
    assert SPACE.legal(config, 4096, 4096, MRange(9, 16), SM_90)
    assert not SPACE.legal(config, 4096, 4096, MRange(9, 33), SM_90)
    assert not SPACE.legal(config, 4096, 4096, MRange(9), SM_90)


def test_a_kernel_serves_eights_of_tokens():
    assert SPACE.served(1, SM_90) == SPACE.served(8, SM_90) == MRange(1, 8)
    assert SPACE.served(9, SM_90) == MRange(9, 16)


def test_no_more_warps_than_blocks_of_k():
    config = SPACE.candidates(4096, 4096, MRange(1, 8), SM_90)[0]
    assert config.KS > 1
    assert SPACE.suits(config, 4096, 128 * config.KS, MRange(1, 8))
    assert not SPACE.suits(config, 4096, 128 * (config.KS - 1), MRange(1, 8))


@pytest.mark.parametrize("arch", list(ARCHS))
def test_dependent_launches_are_where_the_architecture_has_them(arch):
    assert {config.pdl for config in SPACE.configs(ARCHS[arch])} == {ARCHS[arch].pdl}


@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_89"])
def test_gemv_times_are_no_less_than_a_copy_s(arch):
    card = usual_card(ARCHS[arch])
    for N, K in ((4096, 4096), (43008, 5376)):
        floor = floor_us(N, K, 8, COPY_SHARE * card.bandwidth)
        times = [SPACE.time(config, N, K, 8, ARCHS[arch]) for _, config in candidates(N, K, 1, ARCHS[arch])]
        assert floor < min(times) < 2 * floor + START
