"""A model with every kind of layer that the plug-in treats differently."""

import dataclasses
import functools

import numpy as np
from tvm.relax.frontend import nn

from mlc_llm.loader import ExternMapping
from mlc_llm.nn.expert import MixtralExperts
from mlc_llm.support.config import ConfigBase
from mlc_llm.support.tensor_parallel import ShardSingleDim


@dataclasses.dataclass
class SmallConfig(ConfigBase):
    hidden_size: int = 128
    intermediate_size: int = 512
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 32
    vocab_size: int = 512
    tie_word_embeddings: bool = False
    tensor_parallel_shards: int = 1
    kwargs: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        method = self.kwargs.get("quantization_config", {}).get("quant_method")
        assert method in (None, "fp8"), "as several of MLC-LLM's models"


class Embedding(nn.Embedding):
    def lm_head_forward(self, x):
        return nn.op.matmul(x, nn.op.permute_dims(self.weight), out_dtype="float32")


class Layer(nn.Module):
    """The layers of a Llama block in a row, and experts; attention and routing are not of interest here."""

    def __init__(self, config):
        shards = config.tensor_parallel_shards
        q = config.num_attention_heads * config.head_dim // shards
        kv = config.num_key_value_heads * config.head_dim // shards
        i, hidden = config.intermediate_size // shards, config.hidden_size
        self.q = q
        self.qkv_proj = nn.Linear(hidden, q + 2 * kv, bias=True)
        self.o_proj = nn.Linear(q, hidden, bias=False)
        self.gate_up_proj = nn.Linear(hidden, 2 * i, bias=False)
        self.down_proj = nn.Linear(i, hidden, bias=False)
        self.gate = nn.Linear(hidden, 8, bias=False)
        self.experts = MixtralExperts(2, hidden, 64 // shards)
        self.norm = nn.RMSNorm(hidden, -1, 1e-6, bias=False)
        for layer, strategy in (
            (self.qkv_proj, ShardSingleDim("_shard_qkv", 0, [q, kv, kv])),
            (self.o_proj, ShardSingleDim("_shard_o", 1)),
            (self.gate_up_proj, ShardSingleDim("_shard_up", 0, [i, i])),
            (self.down_proj, ShardSingleDim("_shard_down", 1)),
            (self.experts, ShardSingleDim("_shard_experts", 1, [32 // shards, 32 // shards])),
        ):
            layer.weight.attrs["shard_strategy"] = strategy
        self.qkv_proj.bias.attrs["shard_strategy"] = ShardSingleDim("_shard_qkv_bias", 0, [q, kv, kv])

    def forward(self, x):
        x = x + self.o_proj(nn.op.split(self.qkv_proj(self.norm(x)), [self.q], axis=-1)[0])
        gate, up = nn.op.split(self.gate_up_proj(x), 2, axis=-1)
        return x + self.down_proj(nn.op.silu(gate) * up) + nn.op.sum(self.gate(x), -1, keepdims=True)


class Small(nn.Module):
    def __init__(self, config):
        self.config, self.dtype = config, "float32"
        self.embed_tokens = Embedding("vocab_size", config.hidden_size)
        self.layers = nn.ModuleList([Layer(config) for _ in range(config.num_hidden_layers)])
        self.vision = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.vision.no_quantization = True
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, "vocab_size", bias=False, out_dtype="float32")

    def to(self, dtype=None):
        super().to(dtype)
        self.dtype = dtype or self.dtype

    def forward(self, ids):
        x = self.vision(self.embed_tokens(ids))
        for layer in self.layers:
            x = layer(x)
        return self.embed_tokens.lm_head_forward(x) if self.config.tie_word_embeddings else self.lm_head(x)

    def get_default_spec(self):
        modes = {"param_mode": "packed", "effect_mode": "none"}
        forward = {"ids": nn.spec.Tensor([1, "seq_len"], "int32"), "$": modes}
        return nn.spec.ModuleSpec.from_raw({"forward": forward}, self)


def _stack(*parts, dtype):
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return np.stack([np.concatenate(pair, axis=0) for pair in pairs]).astype(dtype)


def _concatenate(*parts, dtype):
    return np.concatenate(parts, axis=0).astype(dtype)


def huggingface(model_config, quantization):
    """Parts of fused layers by the names and the function that MLC-LLM's own loaders use."""
    model = Small(model_config)
    model.to(quantization.model_dtype)
    parameters = dict(model.named_parameters())
    mapping = ExternMapping()
    fused = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
    for name, parameter in parameters.items():
        module, _, suffix = name.rpartition(".")
        parent, _, last = module.rpartition(".")
        names, function = [f"model.{name}"], _concatenate
        if last in fused:
            names = [f"model.{parent}.{part}.{suffix}" for part in fused[last]]
        if last == "lm_head":
            names = [name]
        if last == "experts":
            pairs = [f"model.{module}.{expert}.{{}}_proj.weight" for expert in range(2)]
            names, function = [pair.format(part) for pair in pairs for part in ("gate", "up")], _stack
        mapping.add_mapping(name, names, functools.partial(function, dtype=parameter.dtype))
    mapping.add_unused("model.rotary.inv_freq")
    return mapping
