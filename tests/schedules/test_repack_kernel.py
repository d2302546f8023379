import numpy as np
import pytest
from cuda_on_host import on_host

from nvfp4_tvm import layout
from nvfp4_tvm.errors import ShapeError
from nvfp4_tvm.schedules.repack_kernel import CONFIGS, K_MULTIPLES, Config, k_multiple, repack_kernel
from nvfp4_tvm.target import cuda_target

SM_80 = cuda_target("sm_80").target
#: K of each multiple: less than one 128-block, several blocks of threads, a part of one.
K_OF = {128: (128, 384, 5376), 32: (32, 288, 2880), 16: (16, 272, 2064)}


@pytest.mark.parametrize(
    ("multiple", "config"), [(128, Config()), (32, Config(2, 1)), (16, Config(8, 2)), (128, Config(1, 1, 64))]
)
def test_the_generated_source_makes_the_bytes_that_numpy_makes(multiple, config):
    """On the CPU, thread by thread: odd numbers of rows, ends of rows, over memory that held other bytes."""
    repack = on_host(repack_kernel(multiple, SM_80, config), SM_80)
    rng = np.random.default_rng(0)
    for K in K_OF[multiple]:
        for N, rows in ((1, 1), (16, 16), (35, 35), (24, 1)):
            codes = rng.integers(0, 256, (N, K // 2), np.uint8)
            scales = rng.integers(0, 256, (N, K // 16), np.uint8)
            global_scale = rng.random(rows, np.float32)
            expected = layout.pack(codes, scales, global_scale)
            arrays = [expected.words, expected.scales, expected.global_scale]
            found = repack(codes, scales, global_scale, *(np.full_like(array, 0x55) for array in arrays))[3:]
            for got, array in zip(found, arrays, strict=True):
                assert got.tobytes() == array.tobytes(), (N, K)


def test_what_does_not_fit_is_refused():
    repack = on_host(repack_kernel(128, SM_80), SM_80)
    good = layout.pack(np.zeros((20, 64), np.uint8), np.zeros((20, 8), np.uint8), 1.0)
    arrays = [np.zeros((20, 64), np.uint8), np.zeros((20, 8), np.uint8), np.ones(1, np.float32)]
    outputs = [good.words, good.scales, good.global_scale]
    for i, array in ((0, np.zeros((20, 72), np.uint8)), (3, good.words[:1]), (5, good.global_scale[:16])):
        wrong = [*arrays, *outputs]
        wrong[i] = array
        with pytest.raises(ValueError, match=r"(Invalid|Mismatched) \w+\.(shape|strides)"):
            repack(*wrong)


def test_multiples():
    assert [k_multiple(K) for K in (16, 32, 48, 96, 128, 5376, 2880)] == [16, 32, 16, 32, 128, 128, 32]
    assert all(k_multiple(multiple) == multiple for multiple in K_MULTIPLES)
    with pytest.raises(ShapeError, match=r"found multiples of 64, expected one of \(128, 32, 16\)"):
        repack_kernel(64, SM_80)


def test_configurations():
    assert Config() in CONFIGS
    for arguments in ((4, 3), (4, 4, 128), (0, 4), (4, 2, 100)):
        with pytest.raises(ShapeError, match="expected a span of 1, 2 or 4"):
            Config(*arguments)
