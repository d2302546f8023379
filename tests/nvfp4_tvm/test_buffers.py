import numpy as np
import pytest

from nvfp4_tvm.buffers import ALIGNMENT, Buffers


@pytest.mark.parametrize("shape", [(0, 4), (1,), (3, 7), (1000, 33)])
@pytest.mark.parametrize("dtype", ["uint8", "uint32", "float32"])
def test_arrays_are_aligned_and_have_their_shape(shape, dtype):
    array = Buffers().array("words", shape, dtype)
    assert array.shape == shape and array.dtype == dtype and array.flags.c_contiguous
    assert array.ctypes.data % ALIGNMENT == 0
    array[...] = 7
    assert (array == 7).all()


def test_memory_is_used_again_where_it_is_large_enough():
    buffers = Buffers()
    large = buffers.array("words", (64, 64), np.uint32)
    assert np.shares_memory(large, buffers.array("words", (32, 64), np.uint32))
    assert np.shares_memory(large, buffers.array("words", (64 * 64 * 4,), np.uint8))
    grown = buffers.array("words", (64, 65), np.uint32)
    assert not np.shares_memory(large, grown) and np.shares_memory(
        grown, buffers.array("words", (1,), np.uint8)
    )


def test_names_have_memory_of_their_own():
    buffers = Buffers()
    words, scales = (buffers.array(name, (128,), np.uint8) for name in ("words", "scales"))
    assert not np.shares_memory(words, scales)
