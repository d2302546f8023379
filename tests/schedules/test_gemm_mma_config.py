import pytest

from nvfp4_tvm.errors import ShapeError
from nvfp4_tvm.schedules.gemm_mma_config import MmaConfig


def test_sizes_of_the_tile():
    config = MmaConfig(128, 256, 128, 32, block_k=64, stages=4)
    assert (config.warps, config.threads, config.accumulators) == (8, 256, 32)
    assert (config.tiles_n, config.tiles_m, config.steps, config.stage_words) == (16, 16, 2, 2)
    # Activations 128 x 64 x 2 bytes and words 256 x 64 / 2, scales of a whole 128-block
    assert config.shared_bytes() == 4 * (16384 + 8192 + 2048)
    assert config.shared_bytes(32) == 4 * (16384 + 8192 + 1024)


def test_sums_of_k_warps_share_the_memory_of_the_pipeline():
    config = MmaConfig(64, 64, 64, 32, k_warps=4, stages=2)
    assert config.all_warps == 8
    assert config.shared_bytes() == 4 * 64 * 64 * 4


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"block_k": 96}, "block_k"),
        ({"warp_n": 24}, "warp_n"),
        ({"warp_m": 24}, "warp_m"),
        ({"block_m": 96}, "whole warp tiles"),
        ({"stages": 1}, "stages"),
        ({"splits": 0}, "split"),
        ({"k_warps": 3}, "k_warps"),
        ({"warp_m": 16, "token_tiles": 1, "k_warps": 4}, "k_warps"),
        ({"block_m": 512, "block_n": 512}, "threads"),
    ],
)
def test_refusals(fields, expected):
    with pytest.raises(ShapeError, match=expected) as refusal:
        MmaConfig(**{**{"block_m": 64, "block_n": 64, "warp_m": 64, "warp_n": 32}, **fields})
    assert "\n" not in str(refusal.value)


def test_names_tell_configurations_apart():
    configs = [
        MmaConfig(64, 64, 64, 32),
        MmaConfig(64, 64, 32, 64),
        MmaConfig(64, 64, 64, 32, k_warps=2),
        MmaConfig(64, 64, 64, 32, splits=2),
        MmaConfig(64, 64, 64, 32, block_k=64),
        MmaConfig(64, 64, 64, 32, stages=3),
        MmaConfig(64, 64, 64, 32, token_tiles=1),
    ]
    names = {config.name for config in configs}
    assert len(names) == len(configs)
    assert all(name.replace("_", "").isalnum() for name in names)
