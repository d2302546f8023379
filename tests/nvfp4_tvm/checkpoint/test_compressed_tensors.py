import numpy as np
import pytest
import raw_checkpoints as rc
from raw_checkpoints import DOWN, UP

from nvfp4_tvm.checkpoint import open_checkpoint
from nvfp4_tvm.errors import NVFP4Error

CT = "compressed-tensors"
NVFP4 = {"num_bits": 4, "type": "float", "group_size": 16}
FP8 = {"num_bits": 8, "type": "float", "strategy": "channel"}


def config(ignore=(), groups=None, **quant):
    cfg = rc.config(CT)
    cfg["quantization_config"]["ignore"] = list(ignore)
    if groups is not None:
        cfg["quantization_config"]["config_groups"] = {f"group_{i}": g for i, g in enumerate(groups)}
    cfg["quantization_config"].update(quant)
    return cfg


ACCEPTED = {
    "ignore_name": config(ignore=[DOWN]),
    "ignore_regex": config(ignore=["re:.*down_proj"]),
    "ignore_class_is_no_name": config(ignore=[DOWN, "Embedding"]),
    "target_name": config(groups=[{"targets": [UP], "weights": NVFP4}]),
    "target_regex": config(groups=[{"targets": ["re:.*up_proj$"], "weights": NVFP4}]),
    "second_group": config(
        groups=[
            {"targets": ["re:.*o_proj"], "weights": FP8, "format": "float-quantized"},
            {"targets": ["re:.*mlp.up.*"], "weights": NVFP4, "format": "nvfp4-pack-quantized"},
        ],
        format="mixed-precision",
    ),
    "names_before_classes": config(
        groups=[{"targets": ["Linear"], "weights": None}, {"targets": [UP], "weights": NVFP4}],
    ),
    "activations_only": config(
        groups=[{"targets": [UP], "weights": NVFP4}, {"targets": [DOWN], "weights": None}],
    ),
    "group_format_wins": config(
        groups=[{"targets": [UP], "weights": NVFP4, "format": "nvfp4-pack-quantized"}],
        format="mixed-precision",
    ),
    "dense_sparsity": config(ignore=[DOWN], sparsity_config={"format": "dense"}),
    "empty_extras": config(ignore=[DOWN], sparsity_config={}, transform_config={}, kv_cache_scheme=None),
    "frozen": config(ignore=[DOWN], quantization_status="frozen"),
    "other_class": config(groups=[{"targets": ["LlamaFusedLinear"], "weights": NVFP4}]),
}  # fmt: skip


@pytest.mark.parametrize("case", ACCEPTED)
def test_configs(tmp_path, case):
    checkpoint = open_checkpoint(rc.write(tmp_path, CT, cfg=ACCEPTED[case]))
    checkpoint.verify()
    assert checkpoint.format == CT
    assert checkpoint.is_quantized(UP) and not checkpoint.is_quantized(DOWN)


def test_mixed_groups_list_each_format(tmp_path):
    groups = [{"targets": [UP], "weights": NVFP4}, {"targets": [DOWN], "weights": FP8}]
    cfg = config(groups=groups, format="mixed-precision")
    found = open_checkpoint(rc.write(tmp_path, CT, cfg=cfg)).layers()
    assert found[UP].refusal is None
    assert found[DOWN].format == "fp8" and "is fp8 by the config" in found[DOWN].refusal


@pytest.mark.parametrize("stored", [1e-30, 0.37, 100, 2688, 1e30])
@pytest.mark.parametrize("shape", [(1,), ()])
def test_global_scale_is_the_reciprocal(tmp_path, stored, shape):
    tensors = rc.tensors(CT)
    tensors[f"{UP}.weight_global_scale"] = rc.raw(np.full(shape, stored, np.float32))
    tensor = open_checkpoint(rc.write(tmp_path, CT, tensors)).nvfp4(UP)
    assert tensor.global_scale == np.float32(1) / np.float32(stored)


def test_embeddings_are_linear_only_if_named(tmp_path):
    groups = [{"targets": ["Linear", "Embedding"], "weights": NVFP4}]
    with pytest.raises(NVFP4Error, match=r"model\.embed_tokens.*unquantized weight"):
        open_checkpoint(rc.write(tmp_path, CT, cfg=config([DOWN], groups))).verify()
    groups = [{"targets": ["Linear"], "weights": NVFP4}]
    open_checkpoint(rc.write(tmp_path, CT, cfg=config([DOWN], groups))).verify()


def test_routers_may_be_either(tmp_path):
    import ml_dtypes

    tensors = rc.tensors(CT)
    tensors["model.layers.0.mlp.gate.weight"] = rc.raw(np.ones((4, 64), ml_dtypes.bfloat16))
    open_checkpoint(rc.write(tmp_path, CT, tensors)).verify()
