import numpy as np
import pytest

from nvfp4_tvm.schedules.gemm_mma_swizzle import chunk_of, slot_of


@pytest.mark.parametrize("chunks", [2, 4, 8])
def test_swizzle(chunks):
    chunk, row, q = np.meshgrid(np.arange(chunks), np.arange(8), np.arange(4), indexing="ij")
    slot = slot_of(chunk, row, q, chunks)
    np.testing.assert_array_equal(chunk_of(slot, row, q, chunks), chunk)
    # Eight lanes read at a time, 4g + q: two rows, four q. Their 16 bytes lie in different groups of banks
    bank = (row * 4 * chunks + q * chunks + slot) % 8
    for step in range(chunks):
        for pair in range(4):
            assert len(np.unique(bank[step, 2 * pair : 2 * pair + 2])) == 8
