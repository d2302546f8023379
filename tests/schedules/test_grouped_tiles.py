import numpy as np
import pytest

from nvfp4_tvm.schedules.grouped_tiles import expected_tiles, rows_for


@pytest.mark.parametrize(
    ("experts", "M", "height"), [(8, 3, 8), (8, 100, 16), (128, 512, 8), (128, 8192, 64), (8, 40000, 128)]
)
def test_mean_of_random_routings(experts, M, height):
    rng = np.random.default_rng(M)
    tiles = [
        (-(-np.bincount(rng.integers(0, experts, M), minlength=experts) // height)).sum() for _ in range(300)
    ]
    # Poisson against binomial, and the mean of 300
    assert expected_tiles(experts, M, height) == pytest.approx(np.mean(tiles), rel=0.06)


@pytest.mark.parametrize("experts", [8, 128])
@pytest.mark.parametrize("height", [8, 16, 32])
def test_a_tile_usually_holds_an_experts_rows(experts, height):
    M = rows_for(experts, height)
    assert experts <= expected_tiles(experts, M, height) * 1.02 <= experts * 1.12
    assert expected_tiles(experts, 2 * M, height) > 1.3 * experts
