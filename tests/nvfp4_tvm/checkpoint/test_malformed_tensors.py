"""Malformed tensors: each gives its error, in one line; none yields a wrong number."""

import copy

import ml_dtypes
import numpy as np
import pytest
import raw_checkpoints as rc
from raw_checkpoints import DOWN, UP, K, N, raw
from refusals import BF16, DISAGREE, F8, FORMS, refuse

from nvfp4_tvm.checkpoint import open_checkpoint
from nvfp4_tvm.errors import NVFP4Error


def test_the_valid_ones_are_accepted(tmp_path):
    for form in FORMS:
        checkpoint = open_checkpoint(rc.write(tmp_path / form, form))
        checkpoint.verify()
        assert checkpoint.format == form
        assert {i.format for i in checkpoint.layers().values()} == {"nvfp4", "bf16"}
        assert not any(i.refusal for i in checkpoint.layers().values())


# ---- tensors: each entry changes the tensors of a valid checkpoint; c, s, g are the names of the NVFP4 parts


def scales_with(byte):
    def change(t, c, s, g):
        data = bytearray(t[s].data)
        data[37] = byte
        t[s].data = bytes(data)

    return change


def setter(which, make):
    def change(t, c, s, g):
        t[{"c": c, "s": s, "g": g}[which]] = make()

    return change


def drop(which):
    def change(t, c, s, g):
        del t[{"c": c, "s": s, "g": g}[which]]

    return change


def add(suffix, make):
    def change(t, c, s, g):
        t[f"{UP}.{suffix}"] = make()

    return change


def zeros(dtype, *shape):
    return lambda: raw(np.zeros(shape, dtype))


def ones(dtype, *shape):
    return lambda: raw(np.ones(shape, dtype))


def glob(value):
    return setter("g", lambda: raw(np.array([value], np.float32)))


TENSORS = {
    # block scales
    "scale_nan": (scales_with(0x7F), "block scale that is NaN.*0x7F"),
    "scale_minus_nan": (scales_with(0xFF), "block scale that is NaN.*0xFF"),
    "scale_minus_zero": (scales_with(0x80), "negative.*0x80"),
    "scale_negative": (scales_with(0x81), "negative"),
    "scale_minus_448": (scales_with(0xFE), "negative.*-448"),
    "scale_missing": (drop("s"), "weight_scale: found no such tensor"),
    "scale_bf16": (setter("s", ones(BF16, N, K // 16)), "F8_E4M3"),
    "scale_f32": (setter("s", ones(np.float32, N, K // 16)), "F8_E4M3"),
    "scale_e5m2": (setter("s", ones(ml_dtypes.float8_e5m2, N, K // 16)), "F8_E4M3"),
    "scale_u8": (setter("s", ones(np.uint8, N, K // 16 + 1)), "F8_E4M3"),
    "scale_i8": (setter("s", ones(np.int8, N, K // 16)), "F8_E4M3"),
    "scale_e8m0": (setter("s", ones(ml_dtypes.float8_e8m0fnu, N, K // 32)), "MXFP4"),
    "scale_e8m0_16": (setter("s", ones(ml_dtypes.float8_e8m0fnu, N, K // 16)), "MXFP4"),
    "scale_u8_group32": (setter("s", ones(np.uint8, N, K // 32)), "MXFP4"),
    "scale_group32": (setter("s", ones(F8, N, K // 32)), "do not belong together"),
    "scale_group8": (setter("s", ones(F8, N, K // 8)), "do not belong together"),
    "scale_padded": (setter("s", ones(F8, 128, 4)), "padded or swizzled"),
    "scale_padded_u8": (setter("s", ones(np.uint8, 128, 4)), "padded or swizzled"),
    "scale_flat": (setter("s", ones(F8, 128 * 4)), "padded or swizzled"),
    "scale_flat_u8": (setter("s", ones(np.uint8, 128 * 4)), "padded or swizzled"),
    "scale_tiles": (setter("s", ones(F8, 1, 1, 32, 4, 4)), "padded or swizzled"),
    "scale_linear_flat": (setter("s", ones(F8, N * K // 16)), "padded or swizzled"),
    "scale_transposed": (setter("s", ones(F8, K // 16, N)), "padded or swizzled"),
    "scale_3d": (setter("s", ones(F8, N, K // 16, 1)), "padded or swizzled"),
    "scale_one_row_less": (setter("s", ones(F8, N - 1, K // 16)), "do not belong together"),
    "scale_scalar": (setter("s", ones(F8)), "do not belong together"),
    "scale_empty": (setter("s", ones(F8, 0, K // 16)), "do not belong together"),
    # global scales
    "global_zero": (glob(0), "expected a positive finite"),
    "global_minus_zero": (glob(-0.0), "expected a positive finite"),
    "global_negative": (glob(-1), "expected a positive finite"),
    "global_nan": (glob(np.nan), "expected a positive finite"),
    "global_inf": (glob(np.inf), "expected a positive finite"),
    "global_minus_inf": (glob(-np.inf), "expected a positive finite"),
    "global_missing": (drop("g"), "found no such tensor"),
    "global_bf16": (setter("g", ones(BF16, 1)), "one F32 number"),
    "global_f16": (setter("g", ones(np.float16, 1)), "one F32 number"),
    "global_f64": (setter("g", ones(np.float64, 1)), "one F32 number"),
    "global_i32": (setter("g", ones(np.int32, 1)), "one F32 number"),
    "global_two": (setter("g", ones(np.float32, 2)), "one F32 number"),
    "global_per_row": (setter("g", ones(np.float32, N)), "one F32 number"),
    "global_none": (setter("g", ones(np.float32, 0)), "one F32 number"),
    "global_2d": (setter("g", ones(np.float32, 1, 1)), "one F32 number"),
    # codes
    "codes_odd_K": (
        lambda t, c, s, g: t.update({c: raw(np.ones((N, 30), np.uint8)), s: raw(np.ones((N, 4), F8))}),
        "K = 60 to be a multiple of 16",
    ),
    "codes_K_24": (
        lambda t, c, s, g: t.update({c: raw(np.ones((N, 12), np.uint8)), s: raw(np.ones((N, 2), F8))}),
        "K = 24 to be a multiple of 16",
    ),
    "codes_wider": (setter("c", ones(np.uint8, N, K)), "do not belong together"),
    "codes_narrower": (setter("c", ones(np.uint8, N, K // 4)), "do not belong together"),
    "codes_rows": (setter("c", ones(np.uint8, N + 1, K // 2)), "do not belong together"),
    "codes_i8": (setter("c", ones(np.int8, N, K // 2)), r"expected U8 \[N, K/2\]"),
    "codes_i32": (setter("c", ones(np.int32, N, K // 8)), r"expected U8 \[N, K/2\]"),
    "codes_1d": (setter("c", ones(np.uint8, N * K // 2)), r"expected U8 \[N, K/2\]"),
    "codes_3d": (setter("c", ones(np.uint8, 2, N, K // 2)), r"expected U8 \[N, K/2\]"),
    "codes_scalar": (setter("c", ones(np.uint8)), r"expected U8 \[N, K/2\]"),
    "codes_no_rows": (setter("c", ones(np.uint8, 0, K // 2)), r"expected U8 \[N, K/2\]"),
    "codes_fp8": (setter("c", ones(F8, N, K)), r"expected U8 \[N, K/2\]"),
    "codes_missing": (drop("c"), "found no such tensor"),
    # foreign companions
    "zero_points": (add("weight_zero_point", zeros(np.int8, N, 4)), "zero points"),
    "extra": (add("weight_scale_3", ones(np.float32, 1)), "extra tensor"),
    "extra_inv": (add("weight_scale_inv", ones(np.float32, 1)), "extra tensor"),
    "extra_lora": (add("lora_A", ones(np.float32, 4, K)), "extra tensor"),
    # the config's word
    "plain_but_config_quantizes": (
        lambda t, c, s, g: [t.pop(k) for k in (c, s, g)] and t.update({f"{UP}.weight": raw(np.ones((N, K),
        BF16))}), "unquantized weight.*expected NVFP4 as the config says",
    ),
    "plain_f32_but_config_quantizes": (
        lambda t, c, s, g: [t.pop(k) for k in (c, s, g)] and t.update({f"{UP}.weight": raw(np.ones((N, K),
        "f4"))}), "expected NVFP4 as the config says",
    ),
    "quantized_but_config_excludes": (
        lambda t, c, s, g: t.update({k.replace("up", "down"): copy.deepcopy(t[k]) for k in (c, s, g)}),
        DISAGREE,
    ),
    "scale_beside_plain": (
        lambda t, c, s, g: t.update({f"{DOWN}.weight_scale": raw(np.ones((K, 2), F8))}),
        DISAGREE,
    ),
    "global_beside_plain": (
        lambda t, c, s, g: t.update({f"{DOWN}.{g.rpartition('.')[2]}": raw(np.ones(1, np.float32))}),
        DISAGREE,
    ),
    "fp8_among_plain": (
        lambda t, c, s, g: t.update({f"{DOWN}.weight": raw(np.ones((K, N), F8))}), DISAGREE,
    ),
    "int8_embedding": (
        lambda t, c, s, g: t.update({"model.embed_tokens.weight": raw(np.ones((16, K), np.int8))}),
        DISAGREE,
    ),
    "int64_norm": (
        lambda t, c, s, g: t.update({"model.norm.weight": raw(np.ones(K, np.int64))}), DISAGREE,
    ),
    "only_scales": (
        lambda t, c, s, g: t.update({"model.layers.0.mlp.gate_proj.weight_scale": raw(np.ones((N, 4), F8))}),
        "found no such tensor",
    ),
}  # fmt: skip
MODELOPT_ONLY = {
    "awq": (add("pre_quant_scale", ones(BF16, K)), "NVFP4_AWQ"),
    "svdquant": (add("svdquant_lora_a", ones(BF16, 4, K)), "NVFP4_SVD"),
    "awq_on_plain": (
        lambda t, c, s, g: t.update({f"{DOWN}.pre_quant_scale": raw(np.ones(N, BF16))}), DISAGREE,
    ),
    "ct_names": (
        lambda t, c, s, g: t.update({f"{UP}.weight_packed": t.pop(c)}), "found no such tensor|extra tensor",
    ),
}  # fmt: skip
CT_ONLY = {
    "packed_ints": (add("weight_shape", ones(np.int64, 2)), "packed integers"),
    "g_idx": (add("weight_g_idx", ones(np.int32, K)), "activation order"),
    "both_weights": (add("weight", ones(BF16, N, K)), "extra tensor"),
    "global_overflows": (glob(1e-45), "positive finite"),
    "modelopt_names": (
        lambda t, c, s, g: t.update({f"{UP}.weight": t.pop(c)}), "unquantized weight|found no such tensor",
    ),
}  # fmt: skip
CASES = [(f, n, *v) for f in FORMS for n, v in TENSORS.items()]
CASES += [("modelopt", n, *v) for n, v in MODELOPT_ONLY.items()]
CASES += [("compressed-tensors", n, *v) for n, v in CT_ONLY.items()]


@pytest.mark.parametrize(("form", "name", "change", "words"), CASES, ids=[f"{c[0]}-{c[1]}" for c in CASES])
def test_tensors(tmp_path, form, name, change, words):
    t = rc.tensors(form)
    change(t, *(f"{UP}.{x}" for x in rc.suffixes(form)))
    refuse(rc.write(tmp_path / "ckpt", form, t), words)


@pytest.mark.parametrize("form", FORMS)
def test_the_error_names_file_and_tensor(tmp_path, form):
    t = rc.tensors(form)
    scales_with(0x7F)(t, *(f"{UP}.{x}" for x in rc.suffixes(form)))
    checkpoint = open_checkpoint(rc.write(tmp_path, form, t))
    with pytest.raises(NVFP4Error) as e:
        checkpoint.nvfp4(UP)
    assert UP in str(e.value) and "model.safetensors" in str(e.value)
    assert "row 9, group 1" in str(e.value)  # byte 37 of [32, 4]


def test_there_are_many_hand_made_cases():
    assert len(CASES) >= 100
