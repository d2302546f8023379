import pytest

from nvfp4_tvm.schedules.dense_kernel import DenseConfig
from nvfp4_tvm.schedules.gemv_kernel import GemvConfig
from nvfp4_tvm.schedules.split_warps import SplitWarps


def test_what_a_block_has():
    block = SplitWarps(KS=4, NT=2)
    assert (block.threads, block.rows, block.shared_bytes) == (128, 32, 4 * 8 * 36 * 4)
    for config in (GemvConfig(4, 2), DenseConfig(4, 2, 1, 1)):
        assert config.threads == block.threads and config.shared_bytes == block.shared_bytes


@pytest.mark.parametrize("NT", [1, 2, 3, 4])
def test_lanes_store_partial_sums_to_all_banks(NT):
    stride = SplitWarps(1, NT).shared_stride
    assert {(2 * q * stride + g) % 32 for q in range(4) for g in range(8)} == set(range(32))
