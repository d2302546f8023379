"""Bit for bit against the two libraries that write NVFP4 checkpoints."""

import functools

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvfp4_tvm import numerics, scaling
from nvfp4_tvm.errors import NVFP4Error, ShapeError

BF16 = np.dtype(ml_dtypes.bfloat16)
torch = pytest.importorskip("torch")


def to_torch(a):
    if a.dtype == BF16:
        return torch.from_numpy(np.ascontiguousarray(a).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.ascontiguousarray(a))


def bits(t):
    return t.view(torch.uint8).numpy()


# ---- oracles, each in the library's own code


def modelopt_amax(w, global_amax=None):
    from modelopt.torch.quantization.qtensor import NVFP4QTensor

    t = to_torch(w)
    gs = None if global_amax is None else torch.tensor(global_amax).float() / (6.0 * 448.0)
    q, s, gs = NVFP4QTensor.quantize(t, 16, None, gs)
    return q._quantized_data.numpy(), bits(s), np.float32(gs.item())


def modelopt_four_over_six(w, global_amax=None):
    """ModelOpt's static 4/6 path on CPU: its MSE calibrator, its export, its cast.

    Only the fake quantization inside the search is written here (ModelOpt's is a Triton kernel): divide,
    round, multiply, as its ``nvfp4_scalar_quant``, with the scales of its ``compute_fp4_scales``.
    """
    from modelopt.torch.quantization.calib.mse import MseCalibrator
    from modelopt.torch.quantization.qtensor import NVFP4QTensor
    from modelopt.torch.quantization.tensor_quant import scaled_e4m3_impl

    t = to_torch(w)
    blocks = t.float().reshape(-1, 16)
    block_amax = blocks.abs().amax(-1)
    total = block_amax.amax() if global_amax is None else torch.tensor(global_amax).float()
    grid = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])

    def fake_quant(x, amax):
        scale = scaled_e4m3_impl(amax.float() / 6.0, total * (448.0 / 256.0) / 6.0).reshape(-1, 1)
        safe = torch.where(scale == 0, torch.ones_like(scale), scale)
        a = x.abs() / safe
        # nearest of the grid; on ties the even code (index)
        d = (a.unsqueeze(-1) - grid).abs()
        best = d.amin(-1, keepdim=True)
        index = torch.arange(8)
        even_first = torch.where(d == best, torch.where(index % 2 == 0, 0, 1), 2)
        q = grid[even_first.argmin(-1)] * safe
        return torch.where(scale == 0, torch.zeros_like(x), torch.where(x >= 0, q, -q))

    losses = []
    cal = MseCalibrator(
        block_amax.reshape(-1, 1), axis=0, step_size=0.5, start_multiplier=1.0, stop_multiplier=1.5,
        quant_func=fake_quant, error_func=lambda x, xq: losses.append((x - xq) ** 2) or losses[-1],
    )  # fmt: skip
    cal.collect(blocks)
    chosen = (
        cal._initial_amax.reshape(-1) * cal._candidates[torch.stack(cal._losses_sum).argmin(0).reshape(-1)]
    )

    class Quantizer:
        block_sizes = {-1: 16, "type": "static", "scale_bits": (4, 3), "four_over_six": True}  # noqa: RUF012
        global_amax = total
        _amax = chosen

    s, gs = NVFP4QTensor.get_weights_scaling_factor_from_quantizer(Quantizer(), t)
    q, s, gs = NVFP4QTensor.quantize(t, 16, s, gs)
    six, four = (e.double().sum(-1).numpy() for e in losses)
    identical = (losses[0] == losses[1]).all(-1).numpy()
    return q._quantized_data.numpy(), bits(s), np.float32(gs.item()), six, four, identical


def compressed_tensors_amax(w, global_amax=None):
    from compressed_tensors.compressors.nvfp4.helpers import quantize_and_pack_fp4
    from compressed_tensors.quantization import preset_name_to_scheme
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    t = to_torch(w)
    top = t.float().abs().amax() if global_amax is None else torch.tensor(global_amax).float()
    g = generate_gparam(-top, top)
    blocks = t.float().reshape(t.shape[0], -1, 16)
    args = preset_name_to_scheme("NVFP4A16", ["Linear"]).weights
    s, _ = calculate_qparams(blocks.amin(-1), blocks.amax(-1), args, global_scale=g)
    packed = quantize_and_pack_fp4(t, s, global_scale=g)
    return packed.numpy(), bits(s.to(torch.float8_e4m3fn)), np.float32(g.item())


# ---- inputs


def make_weight(kind, dtype, seed, shape=(33, 160)):
    rng = np.random.default_rng(seed)
    w = rng.standard_normal(shape).astype(np.float32)
    if kind == "normal":
        w *= 0.02
    elif kind == "uniform":
        w = rng.uniform(-1, 1, shape)
    elif kind == "heavy_tails":
        w = rng.standard_t(2, shape)
    elif kind == "outlier":
        w[3, 7] = 3e4
    elif kind == "log":  # block scales from underflow to saturation
        w *= np.exp2(rng.integers(-28, 4, (shape[0], shape[1] // 16)).repeat(16, 1).astype(np.float32))
    elif kind == "grid":  # exact midpoints and grid points, both signs, signed zeros
        w = rng.choice([0, -0.0, 0.25, -0.25, 0.75, 1.25, 1.75, 2.5, -2.5, 3.5, 5, -5, 6, 0.5, 4], shape)
        w[0, 0] = 6.0 * 448
    elif kind == "sparse":
        w *= rng.random(shape) < 0.03
        w[:4] = 0
    elif kind == "tiny":
        w *= 2.0**-100 if np.dtype(dtype) != np.float16 else 2.0**-14
    elif kind == "huge":
        w *= 2.0**120 if np.dtype(dtype) != np.float16 else 2.0**12
    elif (
        kind == "small_scales"
    ):  # products of block and global scale near the end of the normal float32 range
        w *= 2.0**-113 if np.dtype(dtype) != np.float16 else 2.0**-14
    return w.astype(dtype)


KINDS = (
    "normal",
    "uniform",
    "heavy_tails",
    "outlier",
    "log",
    "grid",
    "sparse",
    "tiny",
    "huge",
    "small_scales",
)
DTYPES = (BF16, np.float16, np.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_modelopt_bit_exact(kind, dtype):
    for seed in range(4):
        w = make_weight(kind, dtype, seed)
        codes, scales, gs = numerics.quantize(w)
        want = modelopt_amax(w)
        np.testing.assert_array_equal(scales, want[1])
        np.testing.assert_array_equal(codes, want[0])
        assert gs.tobytes() == want[2].tobytes()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_compressed_tensors_bit_exact(kind, dtype):
    for seed in range(4):
        w = make_weight(kind, dtype, seed)
        codes, scales, gs = numerics.quantize(w, arithmetic="compressed-tensors")
        want = compressed_tensors_amax(w)
        np.testing.assert_array_equal(scales, want[1])
        np.testing.assert_array_equal(codes, want[0])
        stored = numerics.global_scale_from_amax(numerics.amax(w), arithmetic="compressed-tensors")
        assert stored.tobytes() == want[2].tobytes()
        assert gs == np.float32(1) / stored


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_four_over_six_bit_exact(kind, dtype):
    compared = fours = 0
    for seed in range(4):
        w = make_weight(kind, dtype, seed)
        codes, scales, gs = numerics.quantize(w, method="four_over_six")
        q, s, want_gs, six, four, identical = modelopt_four_over_six(w)
        assert gs.tobytes() == want_gs.tobytes()
        # torch's summation order depends on the processor; where the errors tie to rounding, either is right
        with np.errstate(invalid="ignore"):
            clear = np.abs(six - four) > 1e-6 * np.maximum(six, four)
        same = clear | identical
        np.testing.assert_array_equal(scales.reshape(-1)[same], s.reshape(-1)[same])
        np.testing.assert_array_equal(codes.reshape(-1, 8)[same], q.reshape(-1, 8)[same])
        compared += same.mean() / 4
        fours += int((four < six).sum())
    assert compared > 0.95
    # tiny scales are flushed and huge errors overflow in ModelOpt's search: it then keeps 6, and so do we
    assert fours > 0 or kind in ("tiny", "small_scales", "huge")


@pytest.mark.parametrize("oracle", ["modelopt", "compressed-tensors", "four_over_six"])
def test_shared_amax_bit_exact(oracle):
    w = make_weight("normal", BF16, 5)
    shared = float(numerics.amax(w)) * 3.7
    if oracle == "four_over_six":
        got = numerics.quantize(w, method="four_over_six", global_amax=shared)
        want = modelopt_four_over_six(w, shared)
        assert (got[1] == want[1]).mean() > 0.999
        assert got[2] == want[2]
        return
    want = (modelopt_amax if oracle == "modelopt" else compressed_tensors_amax)(w, shared)
    got = numerics.quantize(w, global_amax=shared, arithmetic=oracle)
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(got[1], want[1])


def test_given_global_scale():
    w = make_weight("normal", BF16, 6)
    codes, scales, gs = numerics.quantize(w)
    again = numerics.quantize(w, global_scale=gs)
    np.testing.assert_array_equal(codes, again[0])
    np.testing.assert_array_equal(scales, again[1])
    # far too small: everything saturates at 6 * 448, nothing wraps around
    codes, scales, gs = numerics.quantize(w, global_scale=gs * np.float32(1e-6))
    assert np.abs(numerics.dequantize(codes, scales, gs)).max() == 6 * 448 * np.float64(gs)
    assert set(np.unique(scales)) == {0x7E}


def test_four_over_six_is_never_worse_in_its_own_measure():
    w = make_weight("normal", np.float32, 8, (64, 512))
    error = {}
    for method in ("amax", "four_over_six"):
        q = numerics.quantize(w, method=method)
        error[method] = ((numerics.dequantize(*q) - w) ** 2).reshape(-1, 16).sum(-1)
    assert error["four_over_six"].sum() < error["amax"].sum()


def test_exhaustive_codes_times_scales():
    """16 codes x 256 scale bytes, against ml_dtypes' own decoding and both libraries' dequantization."""
    codes = np.arange(16, dtype=np.uint8)
    byte = np.arange(256, dtype=np.uint8)
    grid = np.broadcast_to(numerics.pack_codes(codes)[None], (256, 8))
    ours = numerics.dequantize(np.ascontiguousarray(grid), byte[:, None], np.float32(1))
    fp4 = codes.view(ml_dtypes.float4_e2m1fn).astype(np.float64)
    want = byte.view(ml_dtypes.float8_e4m3fn).astype(np.float64)[:, None] * fp4
    np.testing.assert_array_equal(ours, want)
    np.testing.assert_array_equal(np.signbit(ours), np.signbit(want))
    finite = ~np.isnan(want).any(1)
    assert (~finite).sum() == 2 and not finite[0x7F] and not finite[0xFF]

    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
    from modelopt.torch.quantization.qtensor import NVFP4QTensor

    packed = to_torch(grid.copy())
    ct = unpack_fp4_from_uint8(packed, 256, 16, torch.float32).numpy()
    np.testing.assert_array_equal(ct[0], numerics.E2M1_VALUES)
    q = NVFP4QTensor(torch.Size((256, 16)), torch.float32, packed)
    s = to_torch(byte[:, None].copy()).view(torch.float8_e4m3fn)
    mo = q.dequantize(torch.float32, scale=s, double_scale=torch.tensor(1.0), block_sizes={-1: 16})
    np.testing.assert_array_equal(mo.numpy(), want.astype(np.float32))
    # exact in bfloat16 too: at most 6 significant bits
    np.testing.assert_array_equal(want[finite].astype(BF16).astype(np.float64), want[finite])


@given(st.integers(0, 2**32 - 1), st.floats(2.0**-100, 2.0**100, width=32))
@settings(deadline=None, max_examples=30)
def test_dequantize_exact(seed, gs):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256, (3, 24), np.uint8)
    scales = rng.integers(0, 0x7F, (3, 3), np.uint8)
    want = numerics.E2M1_VALUES[numerics.unpack_codes(codes)].astype(np.longdouble)
    want = want * numerics.E4M3_VALUES[scales].repeat(16, 1) * np.longdouble(np.float32(gs))
    np.testing.assert_array_equal(numerics.dequantize(codes, scales, np.float32(gs)), want)
    with np.errstate(over="ignore", under="ignore"):
        np.testing.assert_array_equal(
            numerics.dequantize(codes, scales, np.float32(gs), np.float32), want.astype(np.float32)
        )
        half = numerics.dequantize(codes, scales, np.float32(gs), BF16)
        np.testing.assert_array_equal(half, want.astype(np.float32).astype(BF16))


@pytest.mark.parametrize("layout", ["fortran", "strided", "reversed", "readonly"])
def test_any_memory_layout(layout):
    w = make_weight("normal", BF16, 9, (96, 320))
    variants = {
        "fortran": np.asfortranarray(w),
        "strided": np.repeat(w, 2, axis=1)[:, ::2],
        "reversed": w[::-1][::-1],
        "readonly": w.copy(),
    }
    v = variants[layout]
    v.flags.writeable = False
    for got, want in zip(numerics.quantize(v), numerics.quantize(w), strict=True):
        np.testing.assert_array_equal(got, want)


def test_steps_do_not_show(monkeypatch):
    w = make_weight("normal", BF16, 10, (67, 112))
    want = numerics.quantize(w)
    deq = numerics.dequantize(*want)
    for chunk in (16, 48, 1000):
        for module in (numerics, scaling):
            monkeypatch.setattr(module, "CHUNK", chunk)
        for got, expected in zip(numerics.quantize(w), want, strict=True):
            np.testing.assert_array_equal(got, expected)
        np.testing.assert_array_equal(numerics.dequantize(*want), deq)


def test_group_size_is_free():
    w = make_weight("normal", np.float32, 11, (8, 128))
    for group_size in (2, 32, 128):
        codes, scales, gs = numerics.quantize(w, group_size=group_size)
        assert scales.shape == (8, 128 // group_size)
        back = numerics.dequantize(codes, scales, gs, group_size=group_size)
        assert np.abs(back - w).max() <= np.abs(w).max() / 6 * 1.1


def test_float64_input_is_rounded_to_float32():
    w = make_weight("normal", np.float32, 12).astype(np.float64) * (1 + 1e-12)
    for got, want in zip(numerics.quantize(w), numerics.quantize(w.astype(np.float32)), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("dtype", [*DTYPES, np.float64], ids=str)
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_refuses_nan_and_inf_by_name(dtype, value):
    w = np.ones((4, 32), dtype)
    w[2, 5] = value
    with pytest.raises(NVFP4Error, match=r"layer7: found (NaN|an infinite value)") as e:
        numerics.quantize(w, name="layer7")
    assert "\n" not in str(e.value)


BAD = {
    "zeros": (lambda: numerics.quantize(np.zeros((4, 32), np.float32)), NVFP4Error, "only zeros"),
    "tiny": (lambda: numerics.quantize(np.full((4, 32), 1e-36, np.float32)), NVFP4Error, "normal float32"),
    "overflow": (lambda: numerics.quantize(np.full((4, 32), 1e300)), NVFP4Error, "float32"),
    "K": (lambda: numerics.quantize(np.ones((4, 24), np.float32)), ShapeError, "multiple of 16"),
    "K0": (lambda: numerics.quantize(np.ones((4, 0), np.float32)), ShapeError, "multiple of 16"),
    "N0": (lambda: numerics.quantize(np.ones((0, 16), np.float32)), ShapeError, "empty"),
    "1d": (lambda: numerics.quantize(np.ones(32, np.float32)), ShapeError, "expected"),
    "int": (lambda: numerics.quantize(np.ones((4, 32), np.int8)), ShapeError, "int8"),
    "method": (lambda: numerics.quantize(np.ones((4, 32)), method="mse"), NVFP4Error, "'mse'"),
    "arithmetic": (lambda: numerics.quantize(np.ones((4, 32)), arithmetic="x"), NVFP4Error, "'x'"),
    "group": (lambda: numerics.quantize(np.ones((4, 33)), group_size=11), ShapeError, "even"),
    "both": (lambda: numerics.quantize(np.ones((4, 32)), global_scale=1, global_amax=1), NVFP4Error, "both"),
    "gs0": (lambda: numerics.quantize(np.ones((4, 32)), global_scale=0), NVFP4Error, "global scale"),
    "gsnan": (lambda: numerics.quantize(np.ones((4, 32)), global_scale=np.nan), NVFP4Error, "global scale"),
    "amax_nan": (lambda: numerics.global_scale_from_amax(np.nan), NVFP4Error, "finite"),
    "amax_neg": (lambda: numerics.global_scale_from_amax(-1), NVFP4Error, "positive"),
    "scales": (
        lambda: numerics.dequantize(np.zeros((2, 16), np.uint8), np.zeros((2, 3), np.uint8), 1),
        ShapeError, "scales",
    ),
    "dtype": (
        lambda: numerics.dequantize(np.zeros((2, 8), np.uint8), np.zeros((2, 1), np.uint8), 1, np.int32),
        ShapeError, "int32",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_refusals(case):
    call, error, words = BAD[case]
    with pytest.raises(error, match=words) as e:
        call()
    assert "\n" not in str(e.value)


def test_memory_stays_near_the_output():
    import tracemalloc

    w = make_weight("normal", BF16, 13, (2048, 4096))
    for call in (
        functools.partial(numerics.quantize, w),
        functools.partial(numerics.quantize, w, method="four_over_six"),
    ):
        tracemalloc.start()
        call()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2 * w.nbytes
