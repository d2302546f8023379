import pytest

from nvfp4_tvm.errors import ShapeError
from nvfp4_tvm.schedules.gemm_cluster_config import ClusterConfig


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ((40, 2, 2, 4, 4, 4), "multiple of 16"),
        ((64, 0, 2, 4, 4, 4), "at least 1 warpgroup"),
        ((64, 2, 2, 4, 2, 4), "3 stages"),
        ((64, 2, 2, 9, 4, 4), "1 to 8 blocks"),
        ((128, 2, 2, 4, 6, 4), "shared memory"),
        ((64, 2, 2, 4, 4, 4, 2), "do not fit"),
        ((128, 3, 2, 4, 3, 2), "accumulators"),
    ],
)
def test_refusals(values, why):
    with pytest.raises(ShapeError, match=why) as error:
        ClusterConfig(*values)
    assert "\n" not in str(error.value)


def test_sums_and_stages_share_memory():
    config = ClusterConfig(64, 2, 2, 4, 3, 2)
    assert config.ring_bytes == 3 * 64 * 256 + 2 * 256 * 72 > 256 * 64 * 4
    config = ClusterConfig(128, 2, 2, 4, 3, 2)
    assert config.shared_bytes > config.ring_bytes >= 256 * 128 * 4


def test_a_grid_has_a_cluster_for_each_tile():
    config = ClusterConfig(64, 2, 2, 4, 4, 4)
    assert config.rows == 256 and config.tiles == 16
    assert config.grid(64, 4096) == 16 * 4
    assert config.grid(65, 4097) == 2 * 17 * 4
