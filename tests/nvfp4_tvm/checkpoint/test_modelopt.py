import copy

import pytest
import raw_checkpoints as rc
from raw_checkpoints import DOWN, UP

from nvfp4_tvm.checkpoint import open_checkpoint

OWN = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4", "group_size": 16}}


def accepted(folder):
    checkpoint = open_checkpoint(folder)
    checkpoint.verify()
    assert checkpoint.format == "modelopt"
    assert checkpoint.is_quantized(UP) and not checkpoint.is_quantized(DOWN)
    return checkpoint


def config(**quant):
    cfg = rc.config("modelopt")
    cfg["quantization_config"] = quant
    return cfg


MIXED = {UP: {"quant_algo": "NVFP4", "group_size": 16}}
SPELLINGS = {
    "ignore": config(quant_method="modelopt", quant_algo="NVFP4", ignore=[DOWN]),
    "exclude_modules": config(quant_method="modelopt", quant_algo="NVFP4", exclude_modules=[DOWN]),
    "wildcard": config(quant_method="modelopt", quant_algo="NVFP4", ignore=["*.down_proj"]),
    "layer_wildcard": config(quant_method="modelopt", quant_algo="NVFP4", ignore=["model.layers.0.mlp.d*"]),
    "nested": config(
        quant_method="modelopt", quantization={"quant_algo": "NVFP4", "exclude_modules": [DOWN]}
    ),
    "no_method": config(quant_algo="NVFP4", ignore=[DOWN]),
    "method_fp4": config(quant_method="modelopt_fp4", quant_algo="NVFP4", ignore=[DOWN]),
    "weights_only": config(quant_method="modelopt", quant_algo="W4A16_NVFP4", group_size=16, ignore=[DOWN]),
    "mixed": config(quant_method="modelopt", quant_algo="MIXED_PRECISION", quantized_layers=MIXED),
    "kv_cache": config(quant_method="modelopt", quant_algo="NVFP4", ignore=[DOWN], kv_cache_quant_algo="FP8"),
}


@pytest.mark.parametrize("case", SPELLINGS)
def test_config_spellings(tmp_path, case):
    accepted(rc.write(tmp_path, "modelopt", cfg=SPELLINGS[case]))


def test_hf_quant_config_alone(tmp_path):
    own = copy.deepcopy(OWN)
    own["quantization"]["exclude_modules"] = ["lm_head", "model.layers.*.mlp.down_proj"]
    cfg = {"model_type": "llama"}
    accepted(rc.write(tmp_path, "modelopt", cfg=cfg, files=[("hf_quant_config.json", own)]))


def test_hf_quant_config_mixed(tmp_path):
    own = {"quantization": {"quant_algo": "MIXED_PRECISION", "quantized_layers": MIXED}}
    accepted(rc.write(tmp_path, "modelopt", cfg={}, files=[("hf_quant_config.json", own)]))


def test_mixed_lists_each_format(tmp_path):
    layers = {**MIXED, DOWN: {"quant_algo": "FP8"}}
    cfg = config(quant_method="modelopt", quant_algo="MIXED_PRECISION", quantized_layers=layers)
    found = open_checkpoint(rc.write(tmp_path, "modelopt", cfg=cfg)).layers()
    assert found[UP].format == "nvfp4" and found[UP].refusal is None
    assert found[DOWN].format == "fp8" and "is fp8 by the config" in found[DOWN].refusal
    assert found["model.embed_tokens"].refusal is None


def test_only_the_kv_cache_is_quantized(tmp_path):
    tensors = {n: t for n, t in rc.tensors("modelopt").items() if not n.startswith(UP)}
    cfg = config(quant_method="modelopt", quant_algo=None, kv_cache_quant_algo="FP8")
    checkpoint = open_checkpoint(rc.write(tmp_path, "modelopt", tensors, cfg))
    checkpoint.verify()
    assert not any(checkpoint.is_quantized(m) for m in checkpoint.module_names())


def test_companions_are_tolerated(tmp_path, caplog):
    import numpy as np

    tensors = rc.tensors("modelopt")
    for suffix in ("input_scale", "k_scale", "v_scale"):
        tensors[f"{UP}.{suffix}"] = rc.raw(np.float32(0.5))
    tensors["model.layers.0.self_attn.k_scale"] = rc.raw(np.float32(0.5))
    accepted(rc.write(tmp_path, "modelopt", tensors))
    assert [r.levelname for r in caplog.records] == ["WARNING"] and "KV-cache scales" in caplog.text
