"""Malformed checkpoints: each gives its error, in one line; none crashes, hangs or yields a wrong number."""

import copy
import json

import ml_dtypes
import numpy as np
import pytest
import raw_checkpoints as rc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_checkpoints import DOWN, UP, K, N, Raw, raw

from nvfp4_tvm.checkpoint import open_checkpoint
from nvfp4_tvm.errors import NVFP4Error, UnsupportedFormatError

FORMS = ("modelopt", "compressed-tensors")
F8 = ml_dtypes.float8_e4m3fn
BF16 = ml_dtypes.bfloat16
DISAGREE = "config and weights disagree"
DUPLICATE = "different checkpoints|also in"


def refuse(folder, words, *, at_open=None, error=NVFP4Error):
    """Assert that a checkpoint is refused with `words`, and that listing its layers says the same."""
    if at_open is True:
        with pytest.raises(error, match=words) as e:
            open_checkpoint(folder)
    else:
        checkpoint = open_checkpoint(folder)
        with pytest.raises(error, match=words) as e:
            checkpoint.verify()
        refusals = [layer.refusal for layer in checkpoint.layers().values() if layer.refusal]
        assert str(e.value) in refusals
    message = str(e.value)
    assert "\n" not in message
    assert str(folder) in message
    assert len(message) < 1000


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


# ---- config.json


def quant(form, **change):
    cfg = rc.config(form)
    for key, value in change.items():
        cfg["quantization_config"][key] = value
    return cfg


def group(**change):
    cfg = rc.config("compressed-tensors")
    cfg["quantization_config"]["config_groups"]["group_0"].update(change)
    return cfg


def weights(**change):
    cfg = rc.config("compressed-tensors")
    cfg["quantization_config"]["config_groups"]["group_0"]["weights"].update(change)
    return cfg


def without(cfg, key):
    del cfg["quantization_config"][key]
    return cfg


CT, MO = "compressed-tensors", "modelopt"
AT_OPEN = {
    "empty": (CT, "", "invalid JSON"),
    "truncated": (CT, '{"model_type": "llama"', "invalid JSON"),
    "not_json": (CT, "hello", "invalid JSON"),
    "list": (CT, "[]", "JSON list"),
    "number": (CT, "3", "JSON int"),
    "null": (CT, "null", "JSON NoneType"),
    "string": (CT, '"x"', "JSON str"),
    "deep_lists": (CT, "[" * 100_000, "nested too deeply"),
    "deep_objects": (CT, '{"a":' * 100_000, "nested too deeply"),
    "deep_closed": (CT, '{"a":' * 50_000 + "1" + "}" * 50_000, "nested too deeply"),
    "huge_int": (CT, '{"a": ' + "9" * 10_000 + "}", "invalid JSON"),
    "twice": (CT, '{"quantization_config": {}, "quantization_config": {}}', "twice"),
    "bad_utf8": (CT, b"\xff\xfe{}".decode("latin1"), "invalid JSON"),
    "quant_string": (CT, {"quantization_config": "nvfp4"}, "expected an object"),
    "quant_list": (CT, {"quantization_config": []}, "expected an object"),
    "quant_number": (MO, {"quantization_config": 4}, "expected an object"),
    # compressed-tensors
    "no_groups": (CT, without(rc.config(CT), "config_groups"), "no config_groups"),
    "groups_empty": (CT, quant(CT, config_groups={}), "no config_groups"),
    "groups_list": (CT, quant(CT, config_groups=[1]), "no config_groups"),
    "groups_many": (CT, quant(CT, config_groups={str(i): {} for i in range(2000)}), "at most 1000"),
    "group_list": (CT, quant(CT, config_groups={"group_0": []}), "expected an object"),
    "group_none": (CT, quant(CT, config_groups={"group_0": None}), "expected an object"),
    "targets_none": (CT, group(targets=None), "targets"),
    "targets_empty": (CT, group(targets=[]), "targets"),
    "targets_string": (CT, group(targets="Linear"), "targets"),
    "targets_number": (CT, group(targets=[1]), "expected a module name"),
    "targets_nested": (CT, group(targets=[["Linear"]]), "expected a module name"),
    "weights_list": (CT, group(weights=[4]), "expected an object"),
    "bits_string": (CT, weights(num_bits="4"), "num_bits"),
    "bits_true": (CT, weights(num_bits=True), "num_bits"),
    "bits_none": (CT, weights(num_bits=None), "num_bits"),
    "type_none": (CT, weights(type=None), "type"),
    "group_8": (CT, weights(group_size=8), "group_size 8"),
    "group_64": (CT, weights(group_size=64), "group_size 64"),
    "group_missing": (CT, weights(group_size=None), "group_size None"),
    "group_text": (CT, weights(group_size="16"), "group_size '16'"),
    "asymmetric": (CT, weights(symmetric=False), "symmetric"),
    "scale_dtype": (CT, weights(scale_dtype="torch.uint8"), "scale_dtype"),
    "format_mx": (CT, group(format="mxfp4-pack-quantized"), "found format"),
    "format_top": (CT, quant(CT, format="pack-quantized"), "found format"),
    "format_number": (CT, group(format=3), "found format"),
    "sparse": (CT, quant(CT, sparsity_config={"format": "sparse-24-bitmask"}), "sparsity_config"),
    "transform": (CT, quant(CT, transform_config={"config_groups": {"R1": {}}}), "transform_config"),
    "calibrating": (CT, quant(CT, quantization_status="calibration"), "quantization_status"),
    "ignore_string": (CT, quant(CT, ignore="lm_head"), "expected a list"),
    "ignore_object": (CT, quant(CT, ignore={"lm_head": 1}), "expected a list"),
    "ignore_number": (CT, quant(CT, ignore=[None]), "expected a module name"),
    "ignore_empty_name": (CT, quant(CT, ignore=[""]), "expected a module name"),
    "ignore_long": (CT, quant(CT, ignore=["x" * 1000]), "at most 512"),
    "ignore_many": (CT, quant(CT, ignore=[str(i) for i in range(100_001)]), "at most 100000"),
    "ignore_many_patterns": (CT, quant(CT, ignore=[f"re:{i}" for i in range(600)]), "at most 512"),
    "regex_broken": (CT, quant(CT, ignore=["re:(("]), "regular expression"),
    "regex_bracket": (CT, quant(CT, ignore=["re:[a"]), "regular expression"),
    "regex_nested": (CT, quant(CT, ignore=["re:(a+)+$"]), "backtrack"),
    "regex_nested_star": (CT, quant(CT, ignore=["re:(.*)*x"]), "backtrack"),
    "regex_nested_alt": (CT, quant(CT, ignore=["re:(a|a)*$"]), "backtrack"),
    "regex_counted": (CT, quant(CT, ignore=["re:(a{1,50}){1,50}$"]), "backtrack"),
    "regex_many_stars": (CT, quant(CT, ignore=["re:" + ".*" * 20 + "x"]), "backtrack"),
    "regex_backref": (CT, quant(CT, ignore=[r"re:(a)\1"]), "backtrack"),
    "regex_target": (CT, group(targets=["re:(x+x+)+y"]), "backtrack"),
    # ModelOpt
    "algo_number": (MO, quant(MO, quant_algo=4), "quant_algo"),
    "algo_list": (MO, quant(MO, quant_algo=["NVFP4"]), "quant_algo"),
    "algo_unknown": (MO, quant(MO, quant_algo="NVFP5"), "NVFP5"),
    "algo_missing": (MO, without(rc.config(MO), "quant_algo"), "no quant_algo"),
    "mo_group_32": (MO, quant(MO, group_size=32), "group_size 32"),
    "mo_group_text": (MO, quant(MO, group_size="16"), "group_size '16'"),
    "mo_exclude_string": (MO, quant(MO, ignore="lm_head"), "expected a list"),
    "mo_exclude_number": (MO, quant(MO, exclude_modules=[7]), "expected a module name"),
    "mo_mixed_without": (MO, quant(MO, quant_algo="MIXED_PRECISION"), "quantized_layers"),
    "mo_mixed_list": (MO, quant(MO, quant_algo="MIXED_PRECISION", quantized_layers=[UP]), "quantized_layers"),
    "mo_mixed_names": (MO, quant(MO, quant_algo="MIXED_PRECISION", quantized_layers={UP: ""}), "_layers"),
    "mo_mixed_algo": (
        MO, quant(MO, quant_algo="MIXED_PRECISION", quantized_layers={UP: {"quant_algo": "FP3"}}), "FP3",
    ),
    "mo_mixed_group": (
        MO, quant(MO, quant_algo="MIXED_PRECISION", quantized_layers={UP: {"quant_algo": "NVFP4",
        "group_size": 32}}), "group_size 32",
    ),
    "mo_nested": (MO, {"quantization_config": {"quant_method": "modelopt", "quantization": []}}, "no "
    "quant_algo"),
}  # fmt: skip


@pytest.mark.parametrize("case", AT_OPEN)
def test_config(tmp_path, case):
    form, cfg, words = AT_OPEN[case]
    refuse(rc.write(tmp_path / "ckpt", form, cfg=cfg), words, at_open=True)


HF_QUANT = {
    "list": ([], "JSON list"),
    "empty": (b"", "invalid JSON"),
    "no_algo": ({"quantization": {}}, "no quant_algo"),
    "nothing": ({}, "no quant_algo"),
    "disagrees": ({"quantization": {"quant_algo": "FP8"}}, "expected the same"),
    "exclude": ({"quantization": {"quant_algo": "NVFP4", "exclude_modules": "x"}}, "expected a list"),
    "group": ({"quantization": {"quant_algo": "NVFP4", "group_size": 128}}, "group_size 128"),
}


@pytest.mark.parametrize("case", HF_QUANT)
def test_hf_quant_config(tmp_path, case):
    content, words = HF_QUANT[case]
    folder = rc.write(tmp_path, MO, files=[("hf_quant_config.json", content)])
    refuse(folder, words, at_open=True)


# ---- formats this package does not run: listed layer by layer, refused by name
FOREIGN = {
    "mxfp4": (CT, weights(group_size=32), "is mxfp4 by the config"),
    "fp8": (CT, weights(num_bits=8), "is fp8 by the config"),
    "fp6": (CT, weights(num_bits=6), "is fp6 by the config"),
    "int4": (CT, weights(type="int"), "is int4 by the config"),
    "int8": (CT, weights(type="int", num_bits=8), "is int8 by the config"),
    "mixed_fp8": (
        CT, quant(CT, format="mixed-precision", config_groups={
            "a": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float"}, "format":
            "float-quantized"}}),
        "is fp8 by the config",
    ),
    "modelopt_fp8": (MO, quant(MO, quant_algo="FP8"), "is fp8 by the config"),
    "modelopt_awq": (MO, quant(MO, quant_algo="NVFP4_AWQ"), "is nvfp4_awq by the config"),
    "modelopt_svd": (MO, quant(MO, quant_algo="NVFP4_SVD"), "is nvfp4_svdquant by the config"),
    "modelopt_int4": (MO, quant(MO, quant_algo="W4A16_AWQ"), "is int4 by the config"),
    "modelopt_mxfp4": (MO, quant(MO, quant_algo="W4A8_MXFP4_FP8"), "is mxfp4 by the config"),
    "modelopt_mxfp8": (MO, quant(MO, quant_algo="MXFP8"), "is mxfp8 by the config"),
    "modelopt_w4a8": (MO, quant(MO, quant_algo="W4A8_NVFP4_FP8"), "is w4a8_nvfp4_fp8 by the config"),
    "modelopt_mixed_fp8": (
        MO, quant(MO, quant_algo="MIXED_PRECISION", quantized_layers={UP: {"quant_algo": "FP8"}}), "is fp8",
    ),
    "gptq": (CT, {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "is gptq by the config"),
    "awq": (CT, {"quantization_config": {"quant_method": "awq"}}, "is awq by the config"),
    "hf_mxfp4": (CT, {"quantization_config": {"quant_method": "mxfp4"}}, "is mxfp4 by the config"),
    "bitsandbytes": (CT, {"quantization_config": {"quant_method": "bitsandbytes"}}, "is bitsandbytes"),
    "method_number": (CT, {"quantization_config": {"quant_method": 4}}, "is unknown quantization"),
    "method_missing": (CT, {"quantization_config": {"bits": 4}}, "is unknown quantization"),
}  # fmt: skip


@pytest.mark.parametrize("case", FOREIGN)
def test_foreign_formats(tmp_path, case):
    form, cfg, words = FOREIGN[case]
    refuse(rc.write(tmp_path, form, cfg=cfg), words, error=UnsupportedFormatError)


@pytest.mark.parametrize("form", FORMS)
def test_quantized_tensors_without_a_config(tmp_path, form):
    refuse(rc.write(tmp_path, form, cfg={"model_type": "llama"}), DISAGREE)


@pytest.mark.parametrize("form", FORMS)
def test_single_file_runtime_metadata(tmp_path, form):
    header, _ = rc.header_of(rc.tensors(form))
    text = json.dumps({"__metadata__": {"_quantization_metadata": "{}"}, **header}).encode()
    body = rc.safetensors_bytes(rc.tensors(form), text)
    refuse(rc.write(tmp_path, form, body=body), "swizzled", error=UnsupportedFormatError)


# ---- the safetensors file


def header(change):
    def make():
        t = rc.tensors(MO)
        h, _ = rc.header_of(t)
        change(h)
        return rc.safetensors_bytes(t, json.dumps(h).encode())

    return make


def text_of(change):
    def make():
        t = rc.tensors(MO)
        return rc.safetensors_bytes(t, change(json.dumps(rc.header_of(t)[0])).encode())

    return make


def valid():
    return rc.safetensors_bytes(rc.tensors(MO))


NORM = "model.norm.weight"
FILES = {
    "nothing": lambda: b"",
    "seven_bytes": lambda: b"\0" * 7,
    "eight_zeros": lambda: b"\0" * 8,
    "header_only_length": lambda: valid()[:8],
    "half_header": lambda: valid()[:100],
    "no_data": lambda: valid()[: 8 + int.from_bytes(valid()[:8], "little")],
    "one_byte_short": lambda: valid()[:-1],
    "half": lambda: valid()[: len(valid()) // 2],
    "one_byte_more": lambda: valid() + b"\0",
    "length_huge": lambda: (2**64 - 1).to_bytes(8, "little") + valid()[8:],
    "length_2_63": lambda: (2**63).to_bytes(8, "little") + valid()[8:],
    "length_100MB": lambda: (100_000_001).to_bytes(8, "little") + valid()[8:],
    "length_file": lambda: len(valid()).to_bytes(8, "little") + valid()[8:],
    "length_zero": lambda: (0).to_bytes(8, "little") + valid()[8:],
    "length_one_less": lambda: (
        (int.from_bytes(valid()[:8], "little") - 8).to_bytes(8, "little") + valid()[8:]
    ),
    "pickle": lambda: b"\x80\x04\x95" + b"x" * 500,
    "zip": lambda: b"PK\x03\x04" + b"\0" * 500,
    "html": lambda: b"<!DOCTYPE html><html>Not found</html>" * 20,
    "lfs_pointer": lambda: (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1\n"
    ),
    "not_json": text_of(lambda s: "x" * len(s)),
    "list": text_of(lambda s: "[]"),
    "deep": text_of(lambda s: '{"a":' * 20_000),
    "invalid_utf8": lambda: valid().replace(b"model.norm", b"model\xffnorm"),
    "duplicate": text_of(
        lambda s: s[:-1] + "," + s[s.index('"model.norm') : s.index(', "model.layers')] + "}"
    ),
    "entry_list": header(lambda h: h.update({NORM: []})),
    "entry_null": header(lambda h: h.update({NORM: None})),
    "no_dtype": header(lambda h: h[NORM].pop("dtype")),
    "no_shape": header(lambda h: h[NORM].pop("shape")),
    "no_offsets": header(lambda h: h[NORM].pop("data_offsets")),
    "extra_key": header(lambda h: h[NORM].update({"stride": 1})),
    "dtype_unknown": header(lambda h: h[NORM].update({"dtype": "BF17"})),
    "dtype_number": header(lambda h: h[NORM].update({"dtype": 5})),
    "dtype_wider": header(lambda h: h[NORM].update({"dtype": "F32"})),
    "shape_text": header(lambda h: h[NORM].update({"shape": "64"})),
    "shape_negative": header(lambda h: h[NORM].update({"shape": [-64]})),
    "shape_two_negatives": header(lambda h: h[NORM].update({"shape": [-8, -8]})),
    "shape_float": header(lambda h: h[NORM].update({"shape": [64.0]})),
    "shape_true": header(lambda h: h[NORM].update({"shape": [64, True]})),
    "shape_huge": header(lambda h: h[NORM].update({"shape": [2**62, 4]})),
    "shape_overflow": header(lambda h: h[NORM].update({"shape": [2**32, 2**32, 64]})),
    "shape_bigger": header(lambda h: h[NORM].update({"shape": [65]})),
    "shape_smaller": header(lambda h: h[NORM].update({"shape": [63]})),
    "shape_many": header(lambda h: h[NORM].update({"shape": [64] + [1] * 100})),
    "offsets_swapped": header(lambda h: h[NORM]["data_offsets"].reverse()),
    "offsets_negative": header(lambda h: h[NORM].update({"data_offsets": [-128, 0]})),
    "offsets_beyond": header(lambda h: h[NORM].update({"data_offsets": [10**9, 10**9 + 128]})),
    "offsets_one": header(lambda h: h[NORM].update({"data_offsets": [0]})),
    "offsets_three": header(lambda h: h[NORM]["data_offsets"].append(5000)),
    "offsets_overlap": header(lambda h: h[NORM].update({"data_offsets": [0, 128]})),
    "offsets_huge": header(lambda h: h[NORM].update({"data_offsets": [2**64, 2**64 + 128]})),
    "offsets_text": header(lambda h: h[NORM].update({"data_offsets": ["0", "128"]})),
    "metadata_list": header(lambda h: h.update({"__metadata__": []})),
    "metadata_number": header(lambda h: h.update({"__metadata__": {"format": 1}})),
    "name_long": header(lambda h: h.update({"x" * 2000: h.pop(NORM)})),
    "missing_tensor": header(lambda h: h.pop(NORM)),
}


@pytest.mark.parametrize("case", FILES)
def test_file(tmp_path, case):
    refuse(rc.write(tmp_path / "ckpt", MO, body=FILES[case]()), "model.safetensors", at_open=True)


# ---- folders and shards


def test_no_folder(tmp_path):
    refuse(tmp_path / "absent", "found nothing, expected a folder", at_open=True)


def test_a_file_for_a_folder(tmp_path):
    (tmp_path / "x").write_text("")
    refuse(tmp_path / "x", "found a file, expected a folder", at_open=True)


def test_no_config(tmp_path):
    folder = rc.write(tmp_path, MO)
    (folder / "config.json").unlink()
    refuse(folder, "config.json: cannot be read", at_open=True)


def test_config_is_a_folder(tmp_path):
    folder = rc.write(tmp_path, MO)
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    refuse(folder, "config.json: cannot be read", at_open=True)


def test_config_too_large(tmp_path):
    folder = rc.write(tmp_path, MO)
    with (folder / "config.json").open("r+b") as f:
        f.truncate(100 << 20)
    refuse(folder, "at most", at_open=True)


@pytest.mark.parametrize("name", [None, "pytorch_model.bin", "model.gguf", "consolidated.pt"])
def test_no_safetensors(tmp_path, name):
    folder = rc.write(tmp_path, MO, body=False, files=[(name, b"x")] if name else ())
    refuse(folder, name or "no weights", at_open=True)


def shards(folder, *, weight_map=None, index=None, second=None, form=MO):
    t = rc.tensors(form)
    names = list(t)
    first, rest = dict.fromkeys(names[:3]), dict.fromkeys(names[3:])
    parts = {"a.safetensors": {n: t[n] for n in first}, "b.safetensors": {n: t[n] for n in rest}}
    if second is not None:
        parts["b.safetensors"] = second(t, parts["b.safetensors"])
    correct = {n: f for f, p in parts.items() for n in p}
    content = index if index is not None else {"weight_map": (weight_map or (lambda m: m))(correct)}
    files = [(f, rc.safetensors_bytes(p)) for f, p in parts.items()]
    return rc.write(folder, form, body=False, files=[*files, ("model.safetensors.index.json", content)])


@pytest.mark.parametrize("form", FORMS)
def test_valid_shards(tmp_path, form):
    checkpoint = open_checkpoint(shards(tmp_path, form=form))
    checkpoint.verify()
    assert checkpoint.layers()[UP].file == "b.safetensors"


SHARDS = {
    "missing_file": ({"weight_map": lambda m: {**m, NORM: "c.safetensors"}}, "missing"),
    "empty_file_name": ({"weight_map": lambda m: {**m, NORM: ""}}, "missing"),
    "folder_name": ({"weight_map": lambda m: {**m, NORM: "."}}, "missing"),
    "parent": ({"weight_map": lambda m: {**m, NORM: "../a.safetensors"}}, "inside the folder"),
    "deep_parent": ({"weight_map": lambda m: {**m, NORM: "x/../../a.safetensors"}}, "inside the folder"),
    "absolute": ({"weight_map": lambda m: {**m, NORM: "/etc/passwd"}}, "inside the folder"),
    "drive": ({"weight_map": lambda m: {**m, NORM: "C:a.safetensors"}}, "inside the folder"),
    "backslash": ({"weight_map": lambda m: {**m, NORM: "..\\a.safetensors"}}, "inside the folder"),
    "nul": ({"weight_map": lambda m: {**m, NORM: "a\0.safetensors"}}, "inside the folder"),
    "wrong_shard": ({"weight_map": lambda m: {**m, NORM: "b.safetensors"}}, "different checkpoints"),
    "unlisted_tensor": ({"weight_map": lambda m: {k: v for k, v in m.items() if k != NORM}}, "different "
    "checkpoints"),
    "ghost_tensor": ({"weight_map": lambda m: {**m, "ghost": "a.safetensors"}}, "does not hold it"),
    "number": ({"weight_map": lambda m: {**m, NORM: 3}}, "weight_map"),
    "null": ({"weight_map": lambda m: {**m, NORM: None}}, "weight_map"),
    "no_map": ({"index": {"metadata": {}}}, "weight_map"),
    "map_list": ({"index": {"weight_map": []}}, "weight_map"),
    "index_list": ({"index": []}, "JSON list"),
    "index_empty": ({"index": b""}, "invalid JSON"),
    "index_deep": ({"index": b'{"weight_map":' * 50_000}, "nested too deeply"),
    "index_twice": ({"index": b'{"weight_map": {"a": "a.safetensors", "a": "b.safetensors"}}'}, "twice"),
    "duplicate_tensor": ({"second": lambda t, p: {**p, NORM: t[NORM]}}, DUPLICATE),
    "duplicate_codes": (
        {"second": lambda t, p: {**p, f"{DOWN}.weight": raw(np.zeros((K, N), BF16))}}, DUPLICATE,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SHARDS)
def test_shards(tmp_path, case):
    change, words = SHARDS[case]
    refuse(shards(tmp_path / "ckpt", **change), words, at_open=True)


def test_shards_without_an_index(tmp_path):
    folder = shards(tmp_path)
    (folder / "model.safetensors.index.json").unlink()
    refuse(folder, "without model.safetensors.index.json", at_open=True)


def test_truncated_shard(tmp_path):
    folder = shards(tmp_path)
    data = (folder / "b.safetensors").read_bytes()
    (folder / "b.safetensors").write_bytes(data[:-10])
    refuse(folder, "b.safetensors", at_open=True)


def test_slow_patterns_end(tmp_path, monkeypatch):
    from nvfp4_tvm.checkpoint import patterns

    monkeypatch.setattr(patterns, "_MAX_SECONDS", 0.0)
    refuse(rc.write(tmp_path, CT, cfg=quant(CT, ignore=["re:.*down.*"])), "matching took over")


def test_long_module_names_meet_patterns(tmp_path):
    t = rc.tensors(CT)
    t["m" * 300 + ".weight"] = raw(np.ones((4, 4), BF16))
    refuse(rc.write(tmp_path, CT, t, quant(CT, ignore=["re:.*x", DOWN])), "module name of 300 characters")


# ---- random damage


@pytest.fixture(scope="module", params=FORMS)
def genuine(request, tmp_path_factory):
    folder = rc.write(tmp_path_factory.mktemp("damage"), request.param)
    checkpoint = open_checkpoint(folder)
    good = {n: (checkpoint.tensor_info(n), checkpoint.tensor(n).tobytes()) for n in checkpoint.names()}
    return request.param, (folder / "model.safetensors").read_bytes(), good


def survives(folder, good, flipped_tensors):
    """Open and read everything: an error of ours, or data identical outside what was flipped."""
    try:
        checkpoint = open_checkpoint(folder)
    except NVFP4Error as e:
        assert "\n" not in str(e)
        return
    for info in checkpoint.layers().values():
        assert info.refusal is None or "\n" not in info.refusal
    for name in checkpoint.names():
        info = checkpoint.tensor_info(name)
        data = checkpoint.tensor(name).tobytes()
        if name in good and name not in flipped_tensors:
            same = (info.dtype, info.shape) == (good[name][0].dtype, good[name][0].shape)
            assert not same or data == good[name][1]
    try:
        checkpoint.verify()
    except NVFP4Error:
        return
    # accepted: then the quantized layer is there, of the right shape, with sane scales
    tensor = checkpoint.nvfp4(UP)
    assert tensor.shape == (N, K)
    assert np.isfinite(tensor.dequantize(np.float64)).all()


@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), data=st.data())
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_flipped_header_bits(genuine, tmp_path, position, bit, data):
    form, body, good = genuine
    length = int.from_bytes(body[:8], "little")
    damaged = bytearray(body)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[int(position * (8 + length))] ^= 1 << bit
        position = data.draw(st.floats(0, 1, exclude_max=True))
        bit = data.draw(st.integers(0, 7))
    survives(rc.write(tmp_path, form, body=bytes(damaged)), good, set())


@given(position=st.floats(0, 1, exclude_max=True), value=st.integers(1, 255))
@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_flipped_body_bytes(genuine, tmp_path, position, value):
    form, body, good = genuine
    begin = 8 + int.from_bytes(body[:8], "little")
    at = begin + int(position * (len(body) - begin))
    damaged = bytearray(body)
    damaged[at] ^= value
    flipped = {n for n, (info, _) in good.items() if info.begin <= at < info.end}
    assert len(flipped) == 1
    survives(rc.write(tmp_path, form, body=bytes(damaged)), good, flipped)


@given(cut=st.floats(0, 1, exclude_max=True))
@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_truncated_anywhere(genuine, tmp_path, cut):
    form, body, _ = genuine
    refuse(rc.write(tmp_path, form, body=body[: int(cut * len(body))]), "model.safetensors", at_open=True)


@given(st.binary(max_size=400))
@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_bytes(tmp_path, body):
    refuse(rc.write(tmp_path, MO, body=body), "model.safetensors", at_open=True)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 40) | st.floats() | st.sampled_from(["NVFP4", "Linear",
    "re:.*", "", "x"]), lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            [
                "quant_method",
                "quant_algo",
                "ignore",
                "exclude_modules",
                "config_groups",
                "group_0",
                "targets",
                "weights",
                "num_bits",
                "type",
                "group_size",
                "format",
                "quantization",
                "quantized_layers",
                "sparsity_config",
                "quantization_status",
            ],
        ),
        inner, max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@given(st.sampled_from(FORMS), JSON, st.data())
@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_configs(tmp_path, form, value, data):
    """Any JSON at any place of a valid config: an error of ours, or the right numbers."""
    cfg = rc.config(form)
    place = cfg
    for _ in range(data.draw(st.integers(0, 4))):
        inner = [k for k, v in place.items() if isinstance(v, dict)]
        if not inner:
            break
        place = place[data.draw(st.sampled_from(inner))]
    place[data.draw(st.sampled_from(sorted(place)))] = value
    folder = rc.write(tmp_path, form, cfg=cfg)
    try:
        checkpoint = open_checkpoint(folder)
        checkpoint.verify()
    except NVFP4Error as e:
        assert "\n" not in str(e) and str(folder) in str(e)
        return
    want = open_checkpoint(rc.write(tmp_path / "good", form)).nvfp4(UP)
    got = checkpoint.nvfp4(UP)
    np.testing.assert_array_equal(got.dequantize(), want.dequantize())


def test_there_are_at_least_200_hand_made_cases():
    hand_made = len(CASES) + len(AT_OPEN) + len(HF_QUANT) + len(FOREIGN) + len(FILES) + len(SHARDS)
    assert hand_made >= 200
    assert Raw("U8", [1], b"x").end is None
