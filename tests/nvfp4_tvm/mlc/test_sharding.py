"""Shards of the packing are the packings of the shards, and what cannot be sharded is refused."""

import numpy as np
import pytest

from nvfp4_tvm import layout
from nvfp4_tvm.errors import ShapeError

FIELDS = ("words", "scales", "global_scale")


def packed(N, K, seed=0):
    rng = np.random.default_rng(seed)
    return layout.pack(
        rng.integers(0, 256, (N, K // 2), np.uint8),
        rng.integers(1, 0x7F, (N, K // 16), np.uint8),
        rng.uniform(1, 2, N).astype(np.float32),
    )


def layer(mlc_llm, N, K, strategy, shards, name="layers.0.proj"):
    """The packed layer of one shard, whose weight has a strategy."""
    from tvm.relax.frontend import nn

    from nvfp4_tvm.mlc.linear import NVFP4Linear

    linear = nn.Linear(K, N, bias=False)
    linear.weight.attrs["shard_strategy"] = strategy
    return NVFP4Linear.from_module(linear, name, (N, K), "bfloat16", shards)


def strategy(dim, segs=None):
    from mlc_llm.support.tensor_parallel import ShardSingleDim

    return ShardSingleDim("_shard_x", dim, segs)


@pytest.mark.parametrize("shards", [2, 4, 8])
def test_columns_in_segments(mlc_llm, shards):
    segments, K = [64, 32, 16], 256
    new = layer(mlc_llm, sum(segments), K, strategy(0, segments), shards)
    whole = packed(sum(segments) * shards, K)
    # which row of the whole weight is row r of a shard, by the strategy on the unpacked weight
    rows = strategy(0, segments).shard(np.arange(sum(segments) * shards), shards)
    codes, scales, global_scale = layout.unpack(whole)
    names = set()
    for field in FIELDS:
        parameter = getattr(new, field)
        split = parameter.attrs["shard_strategy"]
        names.add(split.name)
        for shard, got in enumerate(split.shard(getattr(whole, field), shards)):
            want = layout.pack(codes[rows[shard]], scales[rows[shard]], global_scale[rows[shard]])
            assert got.shape == tuple(parameter.shape)
            np.testing.assert_array_equal(got, getattr(want, field))
    assert names == {"_shard_x_words", "_shard_x_scales", "_shard_x_global_scale"}


@pytest.mark.parametrize("shards", [2, 4, 8])
def test_rows(mlc_llm, shards):
    N, K = 48, 128 * 3
    new = layer(mlc_llm, N, K, strategy(1), shards)
    whole = packed(N, K * shards)
    codes, scales, global_scale = layout.unpack(whole)
    for field in FIELDS[:2]:
        split = getattr(new, field).attrs["shard_strategy"]
        for shard, got in enumerate(split.shard(getattr(whole, field), shards)):
            part, groups = (slice(shard * K // each, (shard + 1) * K // each) for each in (2, 16))
            want = layout.pack(np.ascontiguousarray(codes[:, part]), scales[:, groups], global_scale)
            np.testing.assert_array_equal(got, getattr(want, field))
    assert "shard_strategy" not in new.global_scale.attrs
    np.testing.assert_array_equal(want.global_scale, whole.global_scale)


@pytest.mark.parametrize(
    ("N", "K", "dim", "segs", "message"),
    [
        (24, 256, 0, None, r"layers.0.proj: N of 96 .*=4 of whole tiles of 16; expected .* of 1, 2$"),
        (48, 256, 0, [40, 8], r"N of 160 \+ 32 .* expected tensor_parallel_shards of 1, 2$"),
        (48, 192, 1, None, r"layers.0.proj: K of 768 .*=4 of whole tiles of 128; expected .* of 1, 2$"),
    ],
)
def test_indivisible_shapes_are_refused(mlc_llm, N, K, dim, segs, message):
    with pytest.raises(ShapeError, match=message):
        layer(mlc_llm, N, K, strategy(dim, segs), 4)


def test_one_shard_may_have_any_shape(mlc_llm):
    new = layer(mlc_llm, 24, 48, strategy(0, [20, 4]), 1)
    assert tuple(new.words.shape) == layout.words_shape(24, 48)


def test_pipeline_stages_follow(mlc_llm):
    from tvm.relax.frontend import nn

    from nvfp4_tvm.mlc.linear import NVFP4Linear

    linear = nn.Linear(128, 16, bias=False)
    linear.weight.attrs["pipeline_stages"] = [1]
    new = NVFP4Linear.from_module(linear, "x", (16, 128), "bfloat16", 1)
    assert all(parameter.attrs["pipeline_stages"] == [1] for parameter in new.packed().values())
