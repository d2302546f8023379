"""Codes and bytes, exhaustively or by their definition."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvfp4_tvm import codes as codes_module
from nvfp4_tvm import numerics
from nvfp4_tvm.errors import NVFP4Error, ShapeError

BF16 = np.dtype(ml_dtypes.bfloat16)
torch = pytest.importorskip("torch")


def to_torch(a):
    return torch.from_numpy(np.ascontiguousarray(a))


def bits(t):
    return t.view(torch.uint8).numpy()


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=64))
@settings(deadline=None)
def test_encode_e2m1_nearest_even(values):
    x = np.array(values, np.float32)
    codes = codes_module.encode_e2m1(x)
    got = codes_module.decode_e2m1(codes)
    grid = codes_module.E2M1_VALUES[:8].astype(np.float64)
    distance = np.abs(np.minimum(np.abs(x.astype(np.float64)), 6)[:, None] - grid)
    best = distance.min(1)
    np.testing.assert_array_equal(np.abs(np.minimum(np.abs(x.astype(np.float64)), 6) - np.abs(got)), best)
    tie = (distance == best[:, None]).sum(1) == 2
    assert (codes[tie] % 2 == 0).all()
    np.testing.assert_array_equal(codes >> 3, x < 0)


def test_encode_e2m1_midpoints_and_zeros():
    x = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, np.inf, -0.25, -0.0, 0.0, -1e-30], np.float32)
    np.testing.assert_array_equal(codes_module.encode_e2m1(x), [0, 2, 2, 4, 4, 6, 6, 7, 8, 0, 0, 8])
    up = np.nextafter(x[:7], np.float32(np.inf))
    np.testing.assert_array_equal(codes_module.encode_e2m1(up), [1, 2, 3, 4, 5, 6, 7])
    with pytest.raises(NVFP4Error, match="NaN"):
        codes_module.encode_e2m1([1.0, np.nan])


def test_e4m3_every_byte_and_every_bfloat16():
    byte = np.arange(256, dtype=np.uint8)
    x = codes_module.decode_e4m3(byte)
    np.testing.assert_array_equal(x, to_torch(byte).view(torch.float8_e4m3fn).float().numpy())
    np.testing.assert_array_equal(codes_module.decode_e4m3(byte.view(ml_dtypes.float8_e4m3fn)), x)
    ok = ~np.isnan(x)
    np.testing.assert_array_equal(codes_module.encode_e4m3(x[ok]), byte[ok])
    values = np.arange(65536, dtype=np.uint16).view(BF16).astype(np.float32)
    values = values[~np.isnan(values)]
    want = torch.from_numpy(values).clamp(-448, 448).to(torch.float8_e4m3fn)
    np.testing.assert_array_equal(codes_module.encode_e4m3(values), bits(want))
    # float32 neighbours of every midpoint
    edges = np.sort(x[ok])
    mid = ((edges[1:].astype(np.float64) + edges[:-1]) / 2).astype(np.float32)
    near = np.concatenate(
        [mid, np.nextafter(mid, np.float32(np.inf)), np.nextafter(mid, np.float32(-np.inf))]
    )
    np.testing.assert_array_equal(
        codes_module.encode_e4m3(near), bits(torch.from_numpy(near).to(torch.float8_e4m3fn))
    )
    assert np.isnan(codes_module.decode_e4m3(codes_module.encode_e4m3(np.float32("nan"))))


@given(st.integers(0, 2**32 - 1), st.integers(0, 4), st.integers(0, 40))
@settings(deadline=None, max_examples=30)
def test_pack_unpack_identity(seed, rows, pairs):
    codes = np.random.default_rng(seed).integers(0, 16, (rows, 2 * pairs), np.uint8)
    packed = codes_module.pack_codes(codes)
    assert packed.shape == (rows, pairs)
    np.testing.assert_array_equal(codes_module.unpack_codes(packed), codes)


def test_even_k_is_the_low_nibble():
    np.testing.assert_array_equal(codes_module.pack_codes(np.array([1, 2, 15, 0], np.uint8)), [0x21, 0x0F])


def test_round_e2m1_agrees_with_the_codes():
    x = np.abs(np.arange(65536, dtype=np.uint16).view(BF16).astype(np.float32))
    x = x[~np.isnan(x)]
    near = np.concatenate([x, np.nextafter(x, np.float32(9)), np.nextafter(x, np.float32(0))])
    want = codes_module.decode_e2m1(codes_module.encode_e2m1(near))
    np.testing.assert_array_equal(codes_module.round_e2m1(near), want)


def test_numerics_offers_the_same():
    for name in ("encode_e2m1", "decode_e2m1", "pack_codes", "unpack_codes", "encode_e4m3", "decode_e4m3"):
        assert getattr(numerics, name) is getattr(codes_module, name)


BAD = {
    "code16": (lambda: codes_module.decode_e2m1(np.array([16], np.uint8)), ShapeError, "16"),
    "codes_dtype": (lambda: codes_module.pack_codes(np.zeros(4, np.int64)), ShapeError, "int64"),
    "odd": (lambda: codes_module.pack_codes(np.zeros(3, np.uint8)), ShapeError, "even number"),
    "packed_dtype": (lambda: codes_module.unpack_codes(np.zeros(4, np.int8)), ShapeError, "int8"),
    "e4m3_dtype": (lambda: codes_module.decode_e4m3(np.zeros(4, np.float32)), ShapeError, "float32"),
}


@pytest.mark.parametrize("case", BAD)
def test_refusals(case):
    call, error, words = BAD[case]
    with pytest.raises(error, match=words) as e:
        call()
    assert "\n" not in str(e.value)
