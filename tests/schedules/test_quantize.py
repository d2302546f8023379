"""The kernel itself; what it computes is compared with NumPy in tests/nvfp4_tvm/test_quantizing.py."""

import ml_dtypes
import numpy as np
import pytest
import tvm

from nvfp4_tvm import numerics
from nvfp4_tvm.schedules.quantize import BATCH, DTYPES, KERNEL, cpu_quantize

NUMPY = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("groups", [1, BATCH - 1, BATCH, BATCH + 1, 3 * BATCH + 5])
def test_a_part_of_a_batch_writes_its_own_bytes_only(dtype, groups):
    function = tvm.compile(cpu_quantize(dtype, "modelopt"), target="llvm")[KERNEL]
    rng = np.random.default_rng(groups)
    weight = rng.standard_normal((groups, 16)).astype(NUMPY[dtype])
    codes, scales, global_scale = numerics.quantize(weight, arithmetic="modelopt")
    found_codes, found_scales = np.full(8 * groups + 64, 0x55, np.uint8), np.full(groups + 64, 0x55, np.uint8)
    amax = float(np.abs(weight.astype(np.float32)).max())
    # Arrays of the sizes that it is told, at the beginning of larger ones
    function(
        weight.ctypes.data,
        groups,
        float(global_scale),
        amax,
        found_codes[: 8 * groups],
        found_scales[:groups],
    )
    assert (
        found_codes[: 8 * groups].tobytes() == codes.tobytes() and (found_codes[8 * groups :] == 0x55).all()
    )
    assert found_scales[:groups].tobytes() == scales.tobytes() and (found_scales[groups:] == 0x55).all()


def test_tasks_run_in_parallel_on_vectors():
    text = cpu_quantize("bfloat16", "modelopt").script()
    assert "T.parallel" in text and "float32x8" in text
