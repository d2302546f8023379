import pytest

from nvfp4_tvm.schedules.base import TENSOR_CORE_DTYPES
from nvfp4_tvm.schedules.intrin import mma_sync


def test_the_instruction():
    assert mma_sync.mma_name("bfloat16") == "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
    assert mma_sync.mma_name("float16") == "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
    assert set(mma_sync.PTX_TYPE) == set(TENSOR_CORE_DTYPES)
    with pytest.raises(KeyError):
        mma_sync.mma_name("float32")
