import pytest

from nvfp4_tvm.arch import ARCHS
from nvfp4_tvm.schedules.base import MRange
from nvfp4_tvm.schedules.gemm_cluster_choice import choices
from nvfp4_tvm.schedules.space_cluster import ClusterSpace

SPACE, SM_90 = ClusterSpace(), ARCHS["sm_90"]


def test_rows_are_kept_to():
    config = SPACE.candidates(4096, 4096, MRange(97, 128), SM_90)[0]
    assert SPACE.legal(config, 4096, 4096, MRange(65, 128), SM_90)
    assert not SPACE.legal(config, 4096, 4096, MRange(97, 129), SM_90)  # a second tile of tokens
    assert not SPACE.legal(config, 4096, 4096, MRange(97), SM_90)
    assert not SPACE.legal(config, 4096, 4096, MRange(97, 128), ARCHS["sm_89"])


def test_every_block_of_a_cluster_has_k():
    config = next(c for c in SPACE.candidates(4096, 4096, MRange(97, 128), SM_90) if c.cluster > 1)
    assert SPACE.legal(config, 4096, 128 * config.cluster, MRange(97, 128), SM_90)
    assert not SPACE.legal(config, 4096, 128 * (config.cluster - 1), MRange(97, 128), SM_90)


def test_a_tile_is_half_full_at_least():
    for config in SPACE.candidates(4096, 4096, MRange(33, 40), SM_90):
        assert 40 <= config.tokens < 80


@pytest.mark.parametrize(("N", "K"), [(4096, 4096), (5376, 21504)])
def test_defaults_are_the_family_s_choices(N, K):
    found = choices(N, K, SM_90)
    assert found
    for m_range, config in found:
        assert SPACE.default(N, K, m_range, SM_90) == config
    assert SPACE.default(N, K, MRange(found[-1][0].high + 1), SM_90) is None
    assert SPACE.default(N, K, found[0][0], ARCHS["sm_89"]) is None
