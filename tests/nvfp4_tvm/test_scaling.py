import ml_dtypes
import numpy as np
import pytest

from nvfp4_tvm.errors import NVFP4Error, ShapeError
from nvfp4_tvm.scaling import CompressedTensorsRules, ModelOptRules, amax, global_scale_from_amax, row_blocks


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
def test_amax_is_the_largest_magnitude(dtype):
    x = np.random.default_rng(0).standard_normal((37, 48)).astype(dtype)
    x[36, 47] = -9.5
    assert amax(x) == np.float32(9.5)
    assert amax(x[:, ::2]) == np.abs(x[:, ::2].astype(np.float32)).max()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_amax_refuses_what_is_not_finite(bad):
    x = np.ones((4, 16), np.float32)
    x[3, 7] = bad
    with pytest.raises(NVFP4Error, match="w: found"):
        amax(x, name="w")


def test_amax_refuses_other_arrays():
    with pytest.raises(ShapeError, match="int32"):
        amax(np.ones(3, np.int32))
    with pytest.raises(ShapeError, match="empty"):
        amax(np.ones((0, 16), np.float32))


def test_the_largest_weight_gets_the_largest_scale():
    gs = global_scale_from_amax(2688.0)
    assert gs == 1
    rules = ModelOptRules(gs, np.float32(2688), "amax")
    assert rules.scales(np.array([2688.0], np.float32)) == 0x7E  # 448
    assert rules.step(np.array([0x7E], np.uint8)) == 448


def test_four_over_six_leaves_room_above():
    assert global_scale_from_amax(1536.0, method="four_over_six") == 1
    rules = ModelOptRules(np.float32(1), np.float32(1536), "four_over_six")
    # Mapping the maximum to 4 instead of 6 takes a scale of 384, which E4M3 still holds.
    assert rules.scales(np.array([1536.0 * 6 / 4], np.float32)) == 0x7C


def test_compressed_tensors_stores_the_reciprocal():
    stored = global_scale_from_amax(2688.0, arithmetic="compressed-tensors")
    assert CompressedTensorsRules(stored, np.float32(2688), "amax").multiplier == np.float32(1) / stored


def test_row_blocks_cover_the_weight_in_order():
    x = np.arange(1000 * 272, dtype=np.float32).reshape(1000, 272)
    for weight in (x, x[::2], x[:, :144]):
        blocks = list(row_blocks(weight, 16))
        assert all(block.size % 16 == 0 for block in blocks) and len(blocks) > 1
        np.testing.assert_array_equal(np.concatenate(blocks), weight.reshape(-1))
