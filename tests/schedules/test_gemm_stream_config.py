import pytest

from nvfp4_tvm.errors import ShapeError
from nvfp4_tvm.schedules.gemm_stream_config import StreamConfig


def test_sizes_follow_from_the_configuration():
    config = StreamConfig(tokens=64, warps=8, tiles=2, x_stages=4, w_stages=2, blocks_per_sm=1)
    assert config.threads == 256
    assert config.row_tiles == 16
    assert config.grid(142) == 142
    # A 128-block of 64 tokens is 16 KiB; of 16 weight rows 1 KiB of words and 128 bytes of scales
    assert config.shared_bytes - 4 * 16384 - 2 * 16 * (1024 + 128) == 32
    # One fragment is 16 rows of 8 tokens: 4 accumulators a thread
    assert config.partials_shape(142) == (142, 16, 256, 4)
    assert config.name.isidentifier()


def test_names_tell_configurations_apart():
    base = {"tokens": 64, "warps": 8, "tiles": 2, "x_stages": 4, "w_stages": 2, "blocks_per_sm": 1}
    changes = [
        {},
        {"tokens": 32},
        {"warps": 4},
        {"tiles": 3},
        {"x_stages": 3},
        {"w_stages": 3},
        {"blocks_per_sm": 2},
        {"group": 2},
        {"early": False},
        {"overhead": 0},
    ]
    names = {StreamConfig(**{**base, **change}).name for change in changes}
    assert len(names) == len(changes)


def test_a_tile_is_cut_only_where_it_may_pay():
    config = StreamConfig(64, 8, 2, 4, 2, 1, overhead=8)
    assert config.cuts(128 * 9) and config.cuts(128 * 8 + 16)
    assert not config.cuts(128 * 8) and not config.cuts(16)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"tokens": 20}, "multiple of 8"),
        ({"tokens": 0}, "multiple of 8"),
        ({"x_stages": 1}, "2 stages"),
        ({"w_stages": 0}, "1 of weights"),
        ({"warps": 33}, "at most 1024"),
        ({"tiles": 4, "group": 2}, "a group is"),
    ],
)
def test_refusals_say_why(change, why):
    base = {"tokens": 64, "warps": 8, "tiles": 2, "x_stages": 4, "w_stages": 2, "blocks_per_sm": 1}
    with pytest.raises(ShapeError, match=why) as error:
        StreamConfig(**{**base, **change})
    assert "\n" not in str(error.value)
