"""The files beside the weights of a quantized checkpoint: configs as the libraries write them, and copies."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import nvfp4_tvm
from nvfp4_tvm.checkpoint.patterns import role_of
from nvfp4_tvm.checkpoint.reader import Checkpoint
from nvfp4_tvm.errors import OutputError
from nvfp4_tvm.numerics import GROUP_SIZE

OutputFormat = Literal["compressed-tensors", "modelopt"]

_WEIGHT_FILES = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".ot"}
_REPLACED = {"config.json", "hf_quant_config.json", "model.safetensors.index.json"}


def write_configs(checkpoint: Checkpoint, dst: Path, format: OutputFormat, kept: list[str]) -> None:
    """Write config.json, and what else the format has, for a checkpoint whose ``kept`` modules stay as they were.

    Raises
    ------
    OutputError
        If a file cannot be written.
    """
    # A tied head has no tensor of its own, yet is a Linear module when the model is built.
    ignore = kept if "lm_head" in kept else [*kept, "lm_head"]
    config = dict(checkpoint.config)
    if format == "compressed-tensors":
        config["quantization_config"] = _compressed_tensors_config(
            [m for m in ignore if role_of(m) != "embedding"]
        )
    else:
        producer = {"name": "nvfp4_tvm", "version": nvfp4_tvm.__version__}
        own, in_config = _modelopt_configs(ignore, producer)
        config["quantization_config"] = in_config
        _write_json(dst / "hf_quant_config.json", own)
    _write_json(dst / "config.json", config)


def _compressed_tensors_config(ignore: list[str]) -> dict[str, Any]:
    """Return what compressed-tensors writes for its preset NVFP4A16 on all linear layers."""
    weights = {
        "num_bits": 4,
        "type": "float",
        "symmetric": True,
        "group_size": GROUP_SIZE,
        "strategy": "tensor_group",
        "dynamic": False,
        "scale_dtype": "torch.float8_e4m3fn",
    }
    group = {
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": None,
        "output_activations": None,
        "format": "nvfp4-pack-quantized",
    }
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": "nvfp4-pack-quantized",
        "config_groups": {"group_0": group},
        "ignore": ignore,
        "kv_cache_scheme": None,
    }


def _modelopt_configs(ignore: list[str], producer: dict[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return hf_quant_config.json and config.json's part, as ModelOpt exports its W4A16_NVFP4_CFG."""
    algo = "W4A16_NVFP4"
    own = {
        "producer": producer,
        "quantization": {
            "quant_algo": algo,
            "kv_cache_quant_algo": None,
            "group_size": GROUP_SIZE,
            "exclude_modules": ignore,
        },
    }
    weights = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": GROUP_SIZE}
    in_config = {
        "config_groups": {"group_0": {"weights": weights, "targets": ["Linear"]}},
        "ignore": ignore,
        "quant_algo": algo,
        "producer": producer,
        "quant_method": "modelopt",
    }
    return own, in_config


def _write_json(path: Path, value: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as e:
        raise OutputError(f"{path}: cannot be written: {e.strerror or e}") from None


def copy_files(src: Path, dst: Path) -> None:
    """Copy what is neither weights nor replaced: tokenizer, generation config, licence, chat template.

    Raises
    ------
    OutputError
        If a file cannot be copied.
    """
    for path in sorted(src.iterdir()):
        if path.is_file() and path.suffix not in _WEIGHT_FILES and path.name not in _REPLACED:
            if path.name.endswith(".index.json") or path.name.startswith("."):
                continue
            try:
                shutil.copyfile(path, dst / path.name)
            except OSError as e:
                raise OutputError(f"{path}: cannot be copied: {e.strerror or e}") from None
