import json

import ml_dtypes
import numpy as np
import pytest
from make_checkpoints import make_compressed_tensors, make_modelopt, make_plain
from safetensors.numpy import load_file, save_file

from nvfp4_tvm.checkpoint import open_checkpoint
from nvfp4_tvm.errors import CheckpointError
from nvfp4_tvm.models import (
    DecoderConfig,
    check_tensors,
    load_parameter,
    parameter_sources,
    quantized_modules,
)

QKV = "model.layers.0.self_attn.qkv_proj"
PARTS = [f"model.layers.0.self_attn.{part}_proj" for part in "qkv"]


def opened(folder, dtype="float32"):
    checkpoint = open_checkpoint(folder)
    config = DecoderConfig.from_hf(checkpoint.config)
    return checkpoint, config, parameter_sources(config, quantized_modules(checkpoint), dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_plain_parameters_are_concatenated_and_cast(tmp_path, dtype):
    folder = make_plain(tmp_path, arch="qwen2", dtype="float32")
    checkpoint, config, sources = opened(folder, dtype)
    check_tensors(checkpoint, config)
    kind = np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(dtype)
    for field in ("weight", "bias"):
        source = sources[f"{QKV}.{field}"]
        value = load_parameter(checkpoint, source)
        expected = np.concatenate([checkpoint.tensor(f"{part}.{field}") for part in PARTS]).astype(kind)
        assert value.dtype == kind and value.shape == source.shape and value.nbytes == source.nbytes
        np.testing.assert_array_equal(value, expected)
    assert load_parameter(checkpoint, sources["model.norm.weight"]).shape == (128,)


@pytest.mark.parametrize("make", [make_modelopt, make_compressed_tensors])
def test_nvfp4_parts_keep_their_global_scales(tmp_path, make):
    checkpoint, config, sources = opened(make(tmp_path))
    check_tensors(checkpoint, config)
    tensors = [checkpoint.nvfp4(part) for part in PARTS]
    codes, scales, rows = (
        load_parameter(checkpoint, sources[f"{QKV}.{field}"]) for field in ("codes", "scales", "global_scale")
    )
    np.testing.assert_array_equal(codes, np.concatenate([tensor.codes for tensor in tensors]))
    np.testing.assert_array_equal(scales, np.concatenate([tensor.scales for tensor in tensors]))
    expected = np.repeat([tensor.global_scale for tensor in tensors], [tensor.shape[0] for tensor in tensors])
    np.testing.assert_array_equal(rows, expected)
    assert rows.dtype == np.float32
    if make is make_compressed_tensors:  # ModelOpt's export gives fused parts one scale
        assert len(set(rows.tolist())) == 3
    assert sources["lm_head.weight"].field == "weight"


def edit(folder, change):
    """Rewrite the folder's tensors with ``change(dict)``."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def edit_config(folder, **change):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


def refusal(folder):
    checkpoint = open_checkpoint(folder)
    with pytest.raises(CheckpointError) as error:
        check_tensors(checkpoint, DecoderConfig.from_hf(checkpoint.config))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_missing_and_extra_tensors(tmp_path):
    folder = make_plain(tmp_path, dtype="float32")
    extra = np.zeros((4, 4), np.float32)
    edit(folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": extra[0]}))
    checkpoint = open_checkpoint(folder)
    check_tensors(checkpoint, DecoderConfig.from_hf(checkpoint.config))
    edit(folder, lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": extra[0], "zzz.weight": extra}))
    message = refusal(folder)
    assert (
        "tensor model.layers.0.self_attn.q_proj.bias and 1 more: found a tensor that a llama model" in message
    )
    edit(folder, lambda t: (t.pop("zzz.weight"), t.pop("model.layers.0.self_attn.q_proj.bias")))
    edit(folder, lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))
    assert "tensor model.layers.1.mlp.up_proj.weight: found no such tensor" in refusal(folder)


def test_config_with_more_layers_than_the_file(tmp_path):
    folder = make_plain(tmp_path, dtype="float32")
    edit_config(folder, num_hidden_layers=3)
    assert "tensor model.layers.2.input_layernorm.weight and 8 more: found no such tensor" in refusal(folder)


def test_tied_head(tmp_path):
    folder = make_plain(tmp_path, tie=True, dtype="float32")
    edit(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].copy()}))
    checkpoint, config, sources = opened(folder)
    check_tensors(checkpoint, config)
    assert "lm_head.weight" not in sources
    edit(folder, lambda t: t.update({"lm_head.weight": t["lm_head.weight"] + 1}))
    assert "tensor lm_head.weight: found values that differ from model.embed_tokens.weight" in refusal(folder)


def load_refusal(folder, name, dtype="float32"):
    checkpoint, _, sources = opened(folder, dtype)
    with pytest.raises(CheckpointError) as error:
        load_parameter(checkpoint, sources[name])
    return str(error.value)


def test_wrong_shapes_dtypes_and_values(tmp_path):
    folder = make_plain(tmp_path, dtype="float32")
    edit(folder, lambda t: t.update({f"{PARTS[1]}.weight": t[f"{PARTS[1]}.weight"][:32].copy()}))
    message = load_refusal(folder, f"{QKV}.weight")
    assert f"tensor {PARTS[1]}.weight: found shape [32, 128], expected [64, 128] by config" in message
    edit(folder, lambda t: t.update({"model.norm.weight": np.ones(128, np.int32)}))
    assert "tensor model.norm.weight: found I32, expected BF16, F16 or F32" in load_refusal(
        folder, "model.norm.weight"
    )
    edit(folder, lambda t: t.update({"model.norm.weight": np.full(128, 1e6, np.float32)}))
    assert "not finite in float16" in load_refusal(folder, "model.norm.weight", "float16")
    checkpoint, _, sources = opened(folder, "bfloat16")
    assert np.isfinite(load_parameter(checkpoint, sources["model.norm.weight"]).astype(np.float32)).all()
    edit(folder, lambda t: t.update({"model.norm.weight": np.full(128, np.nan, np.float32)}))
    assert "not finite numbers" in load_refusal(folder, "model.norm.weight")


def test_nvfp4_of_another_shape(tmp_path):
    folder = make_compressed_tensors(tmp_path)
    edit_config(folder, intermediate_size=512)
    message = load_refusal(folder, "model.layers.0.mlp.gate_up_proj.codes")
    assert (
        "module model.layers.0.mlp.gate_proj: found codes of shape [256, 64], expected [512, 64]" in message
    )


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"intermediate_size": 512}, r"NVFP4 weight \[256, 128\], expected \[512, 128\] by config.json"),
        ({"vocab_size": 1024}, r"found shape \[512, 128\], expected \[1024, 128\] by config"),
    ],
)
def test_shapes_are_checked_before_anything_is_built(tmp_path, change, match):
    folder = make_modelopt(tmp_path)
    edit_config(folder, **change)
    checkpoint = open_checkpoint(folder)
    with pytest.raises(CheckpointError, match=match):
        check_tensors(checkpoint, DecoderConfig.from_hf(checkpoint.config))
