from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvfp4_tvm.schedules import stream_k
from nvfp4_tvm.schedules.stream_k import select_int


def plan(tiles, blocks, grid, overhead):
    """What the kernel does with Python integers: each block's segments ``(tile, first unit, last unit + 1)``."""
    sharing = stream_k.sharing_blocks(tiles, grid, select_int)
    cut = stream_k.cut_tiles(tiles, sharing, blocks, grid, overhead, select_int)
    units = cut * blocks
    bounds = [stream_k.first_unit(block, units, sharing, select_int) for block in range(grid + 1)]
    segments = []
    for block, (begin, end) in enumerate(pairwise(bounds)):
        runs = []
        if end > begin:
            last = (end - 1) // blocks
            for tile in range(last, begin // blocks - 1, -1):
                runs.append((tile, max(begin - tile * blocks, 0), min(end - tile * blocks, blocks)))
        for whole in range(stream_k.whole_tiles(tiles, cut, block, grid)):
            runs.append((cut + whole * grid + block, 0, blocks))
        segments.append(runs)
    return segments, cut, units, sharing, bounds


CASES = st.tuples(
    st.integers(1, 3000), st.integers(1, 240), st.sampled_from([1, 7, 114, 132, 264, 396]), st.integers(0, 30)
)


@settings(deadline=None)
@given(CASES)
def test_every_unit_is_done_once_and_every_sum_is_handed_over(case):
    tiles, blocks, grid, overhead = case
    segments, cut, units, sharing, bounds = plan(tiles, blocks, grid, overhead)
    done = {}
    for block, runs in enumerate(segments):
        for position, (tile, first, stop) in enumerate(runs):
            assert 0 <= tile < tiles and 0 <= first < stop <= blocks
            done.setdefault(tile, []).append((first, stop, block))
            # One slot for sums a block, written before it waits for anybody
            assert stop == blocks or position == 0
    assert sorted(done) == list(range(tiles))
    for tile, parts in done.items():
        parts.sort()
        assert parts[0][0] == 0 and parts[-1][1] == blocks
        assert all(a[1] == b[0] for a, b in pairwise(parts))
        if len(parts) > 1:
            assert tile < cut
            *givers, finisher = (block for _, _, block in parts)
            first = stream_k.first_block(tile, blocks, units, sharing)
            # The finisher adds the non-empty blocks from the first one to the one before it
            assert givers == [b for b in range(first, finisher) if bounds[b + 1] > bounds[b]]


@settings(deadline=None)
@given(CASES)
def test_no_block_has_more_than_whole_tiles_would_give_it(case):
    tiles, blocks, grid, overhead = case
    segments, *_ = plan(tiles, blocks, grid, overhead)
    most = max(sum(stop - first for _, first, stop in runs) for runs in segments)
    assert most <= -(-tiles // grid) * blocks


@pytest.mark.parametrize(
    ("tiles", "grid", "cut"),
    [(132, 132, 0), (1320, 132, 0), (131, 132, 0), (40, 132, 40), (168, 132, 168), (1344, 132, 24 + 132)],
)
def test_tiles_are_cut_where_the_last_round_would_be_empty(tiles, grid, cut):
    assert plan(tiles, 42, grid, 6)[1] == cut


def test_few_tiles_get_a_whole_number_of_blocks_each():
    segments, *_ = plan(64, 32, 264, 6)
    assert [len(runs) for runs in segments] == [1] * 256 + [0] * 8
    assert {stop - first for runs in segments for _, first, stop in runs} == {8}
