"""Small checkpoint folders written byte by byte, so that tests can make them wrong in any way."""

import json
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

N, K = 32, 64
UP = "model.layers.0.mlp.up_proj"
DOWN = "model.layers.0.mlp.down_proj"  # unquantized by the config
SPELLING = {
    "uint8": "U8", "int8": "I8", "int32": "I32", "int64": "I64",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0",
    "bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64",
}  # fmt: skip


@dataclass
class Raw:
    """A tensor as the file will hold it; `begin` and `end` override the offsets."""

    dtype: str
    shape: list
    data: bytes
    begin: int | None = None
    end: int | None = None


def raw(array):
    array = np.asarray(array)
    return Raw(SPELLING[array.dtype.name], list(array.shape), array.tobytes())


def suffixes(form):
    """Return the names of codes, scales and global scale."""
    if form == "modelopt":
        return "weight", "weight_scale", "weight_scale_2"
    return "weight_packed", "weight_scale", "weight_global_scale"


def tensors(form, seed=0):
    """Return a valid set of tensors: one NVFP4 layer, one unquantized, an embedding and a norm."""
    rng = np.random.default_rng(seed)
    codes, scales, total = suffixes(form)
    bf16 = ml_dtypes.bfloat16
    stored = np.float32(0.01) if form == "modelopt" else np.array([100], np.float32)
    return {
        "model.embed_tokens.weight": raw(rng.standard_normal((16, K)).astype(bf16)),
        "model.norm.weight": raw(rng.standard_normal(K).astype(bf16)),
        f"{DOWN}.weight": raw(rng.standard_normal((K, N)).astype(bf16)),
        f"{UP}.{codes}": raw(rng.integers(0, 256, (N, K // 2), np.uint8)),
        f"{UP}.{scales}": raw(rng.integers(1, 0x7F, (N, K // 16), np.uint8).view(ml_dtypes.float8_e4m3fn)),
        f"{UP}.{total}": raw(stored),
    }


def quantization_config(form):
    if form == "modelopt":
        return {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head", DOWN]}
    weights = {
        "num_bits": 4,
        "type": "float",
        "group_size": 16,
        "strategy": "tensor_group",
        "symmetric": True,
    }
    group = {"targets": ["Linear"], "weights": weights}
    return {
        "quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized",
        "config_groups": {"group_0": group}, "ignore": ["lm_head", DOWN], "quantization_status": "compressed",
    }  # fmt: skip


def config(form):
    base = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    return {**base, "quantization_config": quantization_config(form)} if form != "none" else base


def header_of(tensor_map):
    """Return the header object and the data of a safetensors file."""
    header, data = {}, b""
    for name, t in tensor_map.items():
        begin = len(data) if t.begin is None else t.begin
        end = len(data) + len(t.data) if t.end is None else t.end
        header[name] = {"dtype": t.dtype, "shape": t.shape, "data_offsets": [begin, end]}
        data += t.data
    return header, data


def safetensors_bytes(tensor_map, header_text=None, length=None):
    header, data = header_of(tensor_map)
    text = json.dumps(header).encode() if header_text is None else header_text
    text += b" " * (-len(text) % 8)
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def write(folder, form, tensor_map=None, cfg=None, *, body=None, files=()):
    """Write a folder; `body` replaces model.safetensors, `files` adds (name, content) pairs."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    cfg = config(form) if cfg is None else cfg
    (folder / "config.json").write_text(cfg if isinstance(cfg, str) else json.dumps(cfg))
    if body is None:
        body = safetensors_bytes(tensors(form) if tensor_map is None else tensor_map)
    if body is not False:
        (folder / "model.safetensors").write_bytes(body)
    for name, content in files:
        (folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return folder
