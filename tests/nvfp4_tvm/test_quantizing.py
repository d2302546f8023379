import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvfp4_tvm import numerics
from nvfp4_tvm.buffers import Buffers
from nvfp4_tvm.errors import ShapeError
from nvfp4_tvm.quantizing import quantize

DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}
CASES = [(dtype, arithmetic) for dtype in DTYPES for arithmetic in ("modelopt", "compressed-tensors")]


def check(weight, arithmetic):
    stored = numerics.global_scale_from_amax(numerics.amax(weight), arithmetic=arithmetic)
    codes, scales, _ = numerics.quantize(weight, arithmetic=arithmetic)
    buffers = Buffers()
    buffers.array("codes", (1 << 16,), np.uint8).fill(0x55)
    found_codes, found_scales = quantize(weight, stored, arithmetic=arithmetic, buffers=buffers)
    np.testing.assert_array_equal(found_scales, scales)
    np.testing.assert_array_equal(found_codes, codes)


@pytest.mark.parametrize(("dtype", "arithmetic"), CASES)
def test_every_bit_pattern(dtype, arithmetic):
    """All finite 16-bit floats, by which each midpoint and each E4M3 tie is met; of float32, as many at random."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    if dtype == "float32":
        bits = np.random.default_rng(0).integers(0, 2**32, 1 << 16, np.uint32)
    values = bits.view(DTYPES[dtype])
    # Magnitudes whose global scale is a normal number; the largest goes first, so that nothing overflows.
    with np.errstate(invalid="ignore"):
        wide = np.abs(values.astype(np.float64))
    values = values[np.isfinite(wide) & (wide < 2.0**100)]
    rng = np.random.default_rng(1)
    for some in (np.sort(values), rng.permutation(values)):
        check(some[: some.size // 16 * 16].reshape(-1, 16), arithmetic)


@pytest.mark.parametrize("arithmetic", ["modelopt", "compressed-tensors"])
def test_ties_of_codes_and_scales(arithmetic):
    """Quotients at and beside the midpoints of E2M1, under scales that are powers of two."""
    midpoints = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0], np.float32)
    beside = np.concatenate(
        [np.nextafter(midpoints, 0), midpoints, np.nextafter(midpoints, 7, dtype=np.float32)]
    )
    weight = np.concatenate([beside, -beside, [0.0, -0.0, 1e-30, -1e-30]]).astype(np.float32)
    rows = [
        np.concatenate([np.full(1, 6, np.float32), np.resize(weight[i:], 15)]) for i in range(weight.size)
    ]
    check(np.stack([row * np.float32(2.0**-e) for row in rows for e in range(12)]) * 448, arithmetic)


@given(
    st.sampled_from(CASES), st.integers(1, 70), st.integers(1, 9), st.floats(-20, 20), st.integers(0, 2**32)
)
@settings(deadline=None, max_examples=60)
def test_the_kernel_quantizes_as_numpy_does(case, N, groups, exponent, seed):
    """Numbers of groups that are no multiple of a task's, blocks of zeros, blocks whose scales underflow."""
    dtype, arithmetic = case
    rng = np.random.default_rng(seed)
    spread = 2.0 ** (np.clip(exponent, -6, 6) if dtype == "float16" else exponent)
    weight = rng.standard_normal((N, 16 * groups)) * spread * np.exp2(rng.integers(-12, 1, (N, 1)))
    weight[rng.random(N) < 0.2] = 0
    weight[0, 0] = spread
    check(weight.astype(DTYPES[dtype]), arithmetic)


@pytest.mark.parametrize(
    "weight",
    [
        np.zeros((2, 24), np.float32),
        np.zeros((2, 16)),
        np.zeros(16, np.float32),
        np.zeros((16, 16), np.float32)[:, ::2],
    ],
)
def test_what_does_not_fit_is_refused(weight):
    with pytest.raises(ShapeError, match=r"w: found float.*, expected"):
        quantize(weight, np.float32(1), arithmetic="modelopt", name="w")
