import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvfp4_tvm import layout, packing
from nvfp4_tvm.errors import ShapeError


def weight(rng, N, K, offset=0):
    """Codes, scales and global scales whose memory begins ``offset`` bytes after an aligned address."""

    def at_offset(*shape):
        size = int(np.prod(shape))
        return rng.integers(0, 256, size + offset, np.uint8)[offset:].reshape(shape)

    return at_offset(N, K // 2), at_offset(N, K // 16), rng.random(N, np.float32)


def same(found, expected):
    assert (found.N, found.K) == (expected.N, expected.K)
    for field in ("words", "scales", "global_scale"):
        assert getattr(found, field).tobytes() == getattr(expected, field).tobytes(), field


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=3),
    st.integers(1, 30),
    st.integers(0, 7),
    st.booleans(),
    st.integers(0, 2**32),
)
@settings(deadline=None, max_examples=60)
def test_the_kernel_packs_as_numpy_does(Ns, groups, offset, reorder, seed):
    """Any number of parts of any N and K, at any alignment, in any order of rows."""
    rng = np.random.default_rng(seed)
    parts = [weight(rng, N, 16 * groups, offset) for N in Ns]
    codes, scales, rows = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    order = rng.permutation(sum(Ns)) if reorder else None
    chosen = slice(None) if order is None else order
    buffers = packing.Buffers()
    buffers.array("words", (1 << 16,), np.uint32).fill(0xDEADBEEF)
    same(
        packing.pack(*zip(*parts, strict=True), order=order, buffers=buffers),
        layout.pack(codes[chosen], scales[chosen], rows[chosen]),
    )


def test_one_value_for_all_rows():
    codes, scales, _ = weight(np.random.default_rng(0), 24, 144)
    same(packing.pack([codes], [scales], [np.float32(0.5)]), layout.pack(codes, scales, 0.5))


def test_buffers_are_used_again():
    buffers = packing.Buffers()
    big = buffers.array("words", (100, 3), np.uint32)
    small = buffers.array("words", (5,), np.float32)
    assert np.shares_memory(big, small) and small.ctypes.data % 64 == 0
    assert buffers.array("words", (1000,), np.uint32).size == 1000


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"codes": [np.zeros((4, 16), np.int8)]}, r"codes: found int8\[4, 16\]"),
        (
            {"scales": [np.zeros((3, 2), np.uint8)]},
            r"scales: found uint8\[3, 2\], expected contiguous uint8\[4, 2\]",
        ),
        ({"codes": [np.zeros((16, 4), np.uint8).T]}, "expected contiguous"),
        ({"codes": [np.zeros((4, 12), np.uint8)], "scales": [np.zeros((4, 1), np.uint8)]}, "cannot be NVFP4"),
        ({"order": np.array([0, 1, 2, 2])}, "order: found int64"),
        ({"order": np.arange(5)}, r"expected the rows 0\.\.3"),
    ],
)
def test_what_does_not_fit_is_refused(change, match):
    good = {
        "codes": [np.zeros((4, 16), np.uint8)],
        "scales": [np.zeros((4, 2), np.uint8)],
        "global_scale": [1.0],
    }
    with pytest.raises(ShapeError, match=match):
        packing.pack(**good | change)
