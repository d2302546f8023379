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
RULES = [
    (arithmetic, method)
    for arithmetic in ("modelopt", "compressed-tensors")
    for method in ("amax", "four_over_six")
]
CASES = [(dtype, *rules) for dtype in DTYPES for rules in RULES]


def check(weight, arithmetic, method, shared=1.0):
    """``shared``: the largest magnitude of all that share the global scale, in that of the weight."""
    choices = {"arithmetic": arithmetic, "method": method}
    largest = numerics.amax(weight) * np.float32(shared)
    codes, scales, _ = numerics.quantize(weight, global_amax=largest, **choices)
    buffers = Buffers()
    buffers.array("codes", (1 << 16,), np.uint8).fill(0x55)
    found_codes, found_scales = quantize(weight, largest, buffers=buffers, **choices)
    np.testing.assert_array_equal(found_scales, scales)
    np.testing.assert_array_equal(found_codes, codes)


@pytest.mark.parametrize(("dtype", "arithmetic", "method"), CASES)
def test_every_bit_pattern(dtype, arithmetic, method):
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
        check(some[: some.size // 16 * 16].reshape(-1, 16), arithmetic, method)


@pytest.mark.parametrize(("arithmetic", "method"), RULES)
def test_ties_of_codes_and_scales(arithmetic, method):
    """Quotients at and beside the midpoints of E2M1, under scales that are powers of two."""
    midpoints = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0], np.float32)
    beside = np.concatenate(
        [np.nextafter(midpoints, 0), midpoints, np.nextafter(midpoints, 7, dtype=np.float32)]
    )
    weight = np.concatenate([beside, -beside, [0.0, -0.0, 1e-30, -1e-30]]).astype(np.float32)
    rows = [
        np.concatenate([np.full(1, 6, np.float32), np.resize(weight[i:], 15)]) for i in range(weight.size)
    ]
    check(np.stack([row * np.float32(2.0**-e) for row in rows for e in range(12)]) * 448, arithmetic, method)


@given(
    st.sampled_from(CASES),
    st.integers(1, 70),
    st.integers(1, 9),
    st.floats(-20, 20),
    st.sampled_from([1.0, 1.3, 100.0]),
    st.integers(0, 2**32),
)
@settings(deadline=None, max_examples=120)
def test_the_kernel_quantizes_as_numpy_does(case, N, groups, exponent, shared, seed):
    """Numbers of groups that are no multiple of a task's, blocks of zeros, blocks whose scales underflow."""
    dtype, *rules = case
    rng = np.random.default_rng(seed)
    spread = 2.0 ** (np.clip(exponent, -6, 6) if dtype == "float16" else exponent)
    weight = rng.standard_normal((N, 16 * groups)) * spread * np.exp2(rng.integers(-12, 1, (N, 1)))
    weight[rng.random(N) < 0.2] = 0
    weight[0, 0] = spread
    check(weight.astype(DTYPES[dtype]), *rules, shared)


@pytest.mark.parametrize("arithmetic", ["modelopt", "compressed-tensors"])
def test_four_and_six_are_both_chosen(arithmetic):
    """Blocks that are exact if their maximum is 4, or 6, and blocks at random: as by NumPy."""
    rng = np.random.default_rng(0)
    blocks = np.concatenate(
        [np.resize([4, 3, 2, 1], (1, 16)), np.resize([6, 3, 2, 1], (1, 16)), rng.standard_normal((1000, 16))]
    ).astype(np.float32)
    blocks[0] *= 1.5  # its maximum is that of the other
    check(blocks, arithmetic, "four_over_six")
    largest = numerics.amax(blocks)
    codes, _ = quantize(blocks, largest, arithmetic=arithmetic, method="four_over_six")
    highest = (numerics.unpack_codes(codes) & 7).max(axis=1)
    assert (highest[0], highest[1]) == (6, 7)  # codes of 4 and 6
    assert 100 < (highest == 6).sum() < 900


@pytest.mark.parametrize("arithmetic", ["modelopt", "compressed-tensors"])
def test_tiny_and_huge_weights(arithmetic):
    """Steps that are subnormal or zero, and maxima whose six quarters are infinite."""
    rng = np.random.default_rng(0)
    for scale in (2.0**-112, 2.0**-100, 2.0**-30, 2.0**120, 2.0**126):
        weight = (rng.uniform(-1, 1, (64, 32)) * np.exp2(rng.integers(-20, 1, (64, 1))) * scale).astype(
            np.float32
        )
        weight[0, 0] = scale
        for method in ("amax", "four_over_six"):
            check(weight, arithmetic, method)


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
