import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvfp4_tvm import layout
from nvfp4_tvm.errors import ShapeError

SHAPES = [(1, 16), (8, 48), (16, 128), (17, 144), (24, 256), (100, 2880), (33, 32)]


def random_weight(rng, N, K):
    return (
        rng.integers(0, 256, (N, K // 2), dtype=np.uint8),
        rng.integers(0, 256, (N, K // 16), dtype=np.uint8),
        rng.random(N, dtype=np.float32) + np.float32(0.5),
    )


@given(N=st.integers(1, 70), groups=st.integers(1, 20), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_unpack_inverts_pack(N, groups, seed):
    codes, scales, rows = random_weight(np.random.default_rng(seed), N, 16 * groups)
    packed = layout.pack(codes, scales, rows)
    for found, expected in zip(layout.unpack(packed), (codes, scales, rows), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("N", "K"), SHAPES)
def test_padding_is_zero(N, K):
    # All ones in the weight: whatever is not zero beyond it would be a leak.
    packed = layout.pack(
        np.full((N, K // 2), 0xFF, np.uint8), np.full((N, K // 16), 0xFF, np.uint8), np.ones(N, np.float32)
    )
    T, C = layout.tiles(N, K)
    everything = layout.PackedWeight(T * 16, C * 128, packed.words, packed.scales, packed.global_scale)
    codes, scales, rows = layout.unpack(everything)
    assert not codes[N:].any() and not codes[:, K // 2 :].any()
    assert not scales[N:].any() and not scales[:, K // 16 :].any()
    assert not rows[N:].any()


def test_bit_positions_are_a_permutation():
    bits = [layout.code_bit(j, bit) for j in range(8) for bit in range(4)]
    assert sorted(bits) == list(range(32))


def test_every_code_lands_where_the_documentation_says():
    # The documented order, read independently of the index functions: one code set at a time.
    for k in (0, 1, 7, 8, 31, 32, 127):
        for n in (0, 7, 8, 15):
            codes = np.zeros((16, 64), np.uint8)
            codes[n, k // 2] = 0xF << (4 * (k % 2))
            words = layout.pack_codes(codes)
            ((t, c, h, lane, i),) = np.argwhere(words)
            assert (t, c, h, lane, i) == (0, 0, n // 8, 4 * (n % 8) + k // 32, k % 32 // 8)
            positions = layout.BIT_POSITIONS[k % 8 // 2]
            assert words[t, c, h, lane, i] == sum(1 << (bit + 16 * (k % 2)) for bit in positions)


def test_scale_bytes_land_where_the_documentation_says():
    for n in (0, 5, 8, 15):
        for group in range(8):
            scales = np.zeros((16, 8), np.uint8)
            scales[n, group] = 0xAB
            packed = layout.pack_scales(scales)
            ((t, c, lane),) = np.argwhere(packed)
            assert (t, c, lane) == (0, 0, 4 * (n % 8) + group // 2)
            assert packed[t, c, lane] == 0xAB << (8 * (2 * (n // 8) + group % 2))


def test_index_functions_invert_each_other():
    n, k = np.ix_(np.arange(48), np.arange(0, 384, 8))
    back = layout.word_origin(*layout.word_index(n, k))
    np.testing.assert_array_equal(np.broadcast_arrays(*back), np.broadcast_arrays(n, k))
    n, group = np.ix_(np.arange(48), np.arange(24))
    back = layout.scale_origin(*layout.scale_index(n, group))
    np.testing.assert_array_equal(np.broadcast_arrays(*back), np.broadcast_arrays(n, group))


@pytest.mark.parametrize("parts", [(16, 32, 16), (48, 8), (8, 24, 100), (1, 1)])
def test_concat_equals_packing_the_concatenation(parts):
    rng = np.random.default_rng(sum(parts))
    weights = [random_weight(rng, N, 144) for N in parts]
    fused = layout.concat([layout.pack(*weight) for weight in weights])
    whole = layout.pack(*(np.concatenate(arrays) for arrays in zip(*weights, strict=True)))
    assert (fused.N, fused.K) == (sum(parts), 144)
    for field in ("words", "scales", "global_scale"):
        np.testing.assert_array_equal(getattr(fused, field), getattr(whole, field))


def test_scalar_global_scale_spreads_over_the_rows():
    codes, scales, _ = random_weight(np.random.default_rng(0), 5, 32)
    packed = layout.pack(codes, scales, 0.25)
    np.testing.assert_array_equal(packed.global_scale, [0.25] * 5 + [0.0] * 11)


def test_packed_size_is_the_checkpoints():
    shapes = (layout.words_shape(4096, 4096), layout.scales_shape(4096, 4096))
    assert sum(np.prod(shape) * 4 for shape in shapes) == 4096 * 4096 * 9 // 16


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: layout.pack_codes(np.zeros((4, 12), np.uint8)), r"K must be a positive multiple of 16"),
        (lambda: layout.pack_codes(np.zeros((4, 8), np.int8)), r"found int8\[4, 8\], expected uint8"),
        (lambda: layout.pack_codes(np.zeros((0, 8), np.uint8)), r"N at least 1"),
        (lambda: layout.pack_scales(np.zeros((4, 1), np.float32)), r"found float32"),
        (lambda: layout.pack_global_scale(np.ones(3), 4), r"found 3 values, expected 1 or one per row \(4\)"),
        (
            lambda: layout.pack(np.zeros((4, 8), np.uint8), np.zeros((4, 2), np.uint8), 1.0),
            r"found shape \[4, 2\], expected \[4, 1\]",
        ),
    ],
)
def test_refusals(make, match):
    with pytest.raises(ShapeError, match=match):
        make()


def test_packed_weight_refuses_arrays_of_another_layout():
    packed = layout.pack(*random_weight(np.random.default_rng(0), 16, 128))
    with pytest.raises(
        ShapeError, match=r"words is uint32\[1, 1, 2, 128\], expected uint32\[1, 1, 2, 32, 4\]"
    ):
        layout.PackedWeight(16, 128, packed.words.reshape(1, 1, 2, 128), packed.scales, packed.global_scale)


def test_concat_refuses_different_k():
    rng = np.random.default_rng(0)
    with pytest.raises(ShapeError, match="parts need one K"):
        layout.concat([layout.pack(*random_weight(rng, 16, K)) for K in (16, 32)])


def test_scales_of_groups_of_32_fill_their_array_once():
    N, K = 48, 256
    shape = layout.scales_shape(N, K, 32)
    assert shape == (3, 2, 16)
    n, group = np.ix_(np.arange(N), np.arange(K // 32))
    index = np.broadcast_arrays(*layout.scale_index(n, group, group_size=32))
    places = np.ravel_multi_index(index, (*shape, 4))
    np.testing.assert_array_equal(np.sort(places, axis=None), np.arange(N * K // 32))
    # The lane of a group is that of its words
    words = layout.word_index(n, group * 32)
    np.testing.assert_array_equal(
        words[3] // 2, np.broadcast_to(layout.scale_index(n, group, group_size=32)[2], words[3].shape)
    )
