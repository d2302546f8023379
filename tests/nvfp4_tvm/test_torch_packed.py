import copy
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nvfp4_tvm import layout
from nvfp4_tvm.errors import CheckpointError, ShapeError
from nvfp4_tvm.torch import PackedWeight, interleave, pack

FIELDS = ("words", "scales", "global_scale")


def canonical(
    N: int, K: int, per_row: bool = True, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256, (N, K // 2), np.uint8)
    scales = rng.integers(0, 0x7F, (N, K // 16), np.uint8)
    return codes, scales, rng.uniform(1e-6, 1e3, N if per_row else 1).astype(np.float32)


def assert_same(packed: PackedWeight, expected: layout.PackedWeight) -> None:
    assert (packed.N, packed.K, packed.nbytes) == (expected.N, expected.K, expected.nbytes)
    for field in FIELDS:
        got = getattr(packed, field).cpu().numpy()
        assert got.dtype == getattr(expected, field).dtype and np.array_equal(
            got, getattr(expected, field)
        ), field


@settings(deadline=None, max_examples=30)
@given(N=st.integers(1, 70), groups=st.integers(1, 30), per_row=st.booleans(), seed=st.integers(0, 2**31))
def test_bit_identical_to_the_layout(N, groups, per_row, seed):
    arrays = canonical(N, 16 * groups, per_row, seed)
    assert_same(pack(*map(torch.tensor, arrays)), layout.pack(*arrays))


def test_ways_to_give_a_weight():
    codes, scales, rows = canonical(24, 48, per_row=False)
    expected = layout.pack(codes, scales, rows)
    tensors = torch.tensor(codes), torch.tensor(scales)
    e4m3 = tensors[1].view(torch.float8_e4m3fn)
    for global_scale in (float(rows[0]), torch.tensor(rows), torch.tensor(rows[0])):
        assert_same(pack(*tensors, global_scale), expected)
        assert_same(pack(tensors[0], e4m3, global_scale), expected)
    # Views: not contiguous, and beginning in the middle of a word
    wide = torch.zeros(24, 3 * 24, dtype=torch.uint8)
    wide[:, 1:25] = tensors[0]
    assert_same(pack(wide[:, 1:25], tensors[1], torch.tensor(rows)), expected)
    flat = torch.zeros(24 * 24 + 1, dtype=torch.uint8)
    flat[1:] = tensors[0].flatten()
    assert_same(pack(flat[1:].view(24, 24), tensors[1], torch.tensor(rows)), expected)


def test_the_default_dtype_has_no_say():
    arrays = canonical(24, 48)
    torch.set_default_dtype(torch.bfloat16)
    try:
        packed = pack(*map(torch.tensor, arrays))
    finally:
        torch.set_default_dtype(torch.float32)
    assert_same(packed, layout.pack(*arrays))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda c, s, g: (c.int(), s, g), ShapeError, r"layer: codes are int32\[20, 24\], expected uint8"),
        (lambda c, s, g: (c[:, 4:], s, g), ShapeError, "layer: codes.*multiple of 16"),
        (
            lambda c, s, g: (c, s[1:], g),
            ShapeError,
            r"layer: scales are uint8\[19, 3\], expected uint8 \[20, 3\]",
        ),
        (
            lambda c, s, g: (c, s, g[1:]),
            ShapeError,
            r"layer: global_scale is float32\[19\], expected .*\[1\] or \[20\]",
        ),
        (lambda c, s, g: (c, s, g.to("meta")), ShapeError, "layer: global_scale is on meta, expected cpu"),
        (lambda c, s, g: (c, s | 0x80, g), CheckpointError, "layer: found a block scale that is negative"),
        (
            lambda c, s, g: (c, torch.full_like(s, 0x7F), g),
            CheckpointError,
            "layer: found a block scale that is NaN",
        ),
        (lambda c, s, g: (c, s, g * 0), CheckpointError, "layer: found the global scale 0"),
        (lambda c, s, g: (c, s, g * torch.nan), CheckpointError, "layer: found the global scale nan"),
        (lambda c, s, g: (c, s, g * torch.inf), CheckpointError, "layer: found the global scale inf"),
    ],
)
def test_wrong_weights_are_refused(change, error, message):
    with pytest.raises(error, match=message) as caught:
        pack(*change(*map(torch.tensor, canonical(20, 48))), name="layer")
    assert "\n" not in str(caught.value)


def test_wrong_tensors_are_refused():
    packed = pack(*map(torch.tensor, canonical(20, 48)))
    good = {field: getattr(packed, field) for field in FIELDS}
    PackedWeight(20, 48, **good)
    for field, change, message in [
        ("words", lambda t: t.view(torch.int32), r"words is int32\[2, 1, 2, 32, 4\], expected uint32"),
        (
            "scales",
            lambda t: t[:1],
            r"scales is uint32\[1, 1, 32\], expected uint32\[2, 1, 32\] of layout version 1",
        ),
        ("global_scale", lambda t: t.to("meta"), "global_scale is .* on meta, expected it contiguous on cpu"),
        ("global_scale", lambda t: t.repeat(2)[::2], r"with strides \[2\]"),
    ]:
        with pytest.raises(ShapeError, match=message):
            PackedWeight(20, 48, **{**good, field: change(good[field])})
    with pytest.raises(ShapeError, match="multiple of 16"):
        PackedWeight(20, 50, **good)


def test_copies(tmp_path):
    packed = pack(*map(torch.tensor, canonical(20, 48)))
    packed.kernels["of this process"] = object()
    torch.save(packed, tmp_path / "packed.pt")
    loaded = torch.load(tmp_path / "packed.pt", weights_only=False)
    for other in (copy.deepcopy(packed), loaded, packed.to("cpu")):
        assert other is not packed and not other.kernels
        assert all(torch.equal(getattr(other, field), getattr(packed, field)) for field in FIELDS)
    assert copy.deepcopy(packed).words.data_ptr() != packed.words.data_ptr()
    assert packed.to("meta").device.type == "meta"


def test_interleave():
    gate, up = torch.arange(16), 100 + torch.arange(16)
    assert interleave(gate, up).tolist() == [
        *range(8), *range(100, 108), *range(8, 16), *range(108, 116)
    ]  # fmt: skip
    assert torch.equal(
        interleave(gate[:, None].expand(16, 3), up[:, None].expand(16, 3))[:, 1], interleave(gate, up)
    )
    for other in (up[:8], up[:, None]):
        with pytest.raises(ShapeError, match="interleave: found"):
            interleave(gate, other)
    with pytest.raises(ShapeError, match="multiple of 8"):
        interleave(gate[:12], up[:12])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize(("N", "K"), [(8, 16), (100, 2880), (300, 4096), (43008, 5376)])
def test_on_a_gpu(N, K):
    arrays = canonical(N, K)
    tensors = [torch.tensor(array).cuda() for array in arrays]
    pack(*tensors)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before, start = torch.cuda.memory_allocated(), time.perf_counter()
    packed = pack(*tensors)
    torch.cuda.synchronize()
    seconds, peak = time.perf_counter() - start, torch.cuda.max_memory_allocated() - before
    print(f"{N}x{K}: {seconds * 1e3:.1f} ms, peak {peak / 1e6:.0f} MB for {packed.nbytes / 1e6:.0f} MB")
    assert seconds < 0.1 and peak < packed.nbytes + 1e6
    assert_same(packed, layout.pack(*arrays))
