"""Which linear layers a decoder has, under which names, and which checkpoint modules each is made of.

The model (:mod:`nvfp4_tvm.models.decoder`) and the loader (:mod:`nvfp4_tvm.models.parameters`) both follow
this one description. Names of modules are those of Hugging Face checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from nvfp4_tvm.models.config import DecoderConfig

EMBEDDING = "model.embed_tokens"
HEAD = "lm_head"
FINAL_NORM = "model.norm"

#: Says of a checkpoint module (such as ``model.layers.0.mlp.up_proj``) whether its weight is NVFP4.
Quantized = Callable[[str], bool]


def nothing_quantized(_module: str) -> bool:
    """Say of every module that it is not quantized."""
    return False


@dataclass(frozen=True)
class LinearSpec:
    """One linear layer of the model, possibly several of the checkpoint fused along N.

    Attributes
    ----------
    name : str
        Path of the module in the model.
    parts : tuple of (str, int)
        Checkpoint modules and their N, in the order in which they are concatenated.
    K : int
        Input features.
    bias, quantized : bool
        Of all parts alike.
    """

    name: str
    parts: tuple[tuple[str, int], ...]
    K: int
    bias: bool = False
    quantized: bool = False

    @property
    def N(self) -> int:
        """Output features."""
        return sum(n for _, n in self.parts)

    @property
    def attribute(self) -> str:
        """Last component of the name."""
        return self.name.rpartition(".")[2]


@dataclass(frozen=True)
class LayerSpec:
    """Linear layers of a decoder layer; ``qkv`` and ``gate_up`` hold a fused layer or the separate parts."""

    name: str
    qkv: tuple[LinearSpec, ...]
    o: LinearSpec
    gate_up: tuple[LinearSpec, ...]
    down: LinearSpec

    @property
    def linears(self) -> tuple[LinearSpec, ...]:
        """All of them."""
        return (*self.qkv, self.o, *self.gate_up, self.down)


def layer_spec(config: DecoderConfig, index: int, quantized: Quantized) -> LayerSpec:
    """Describe layer ``index``."""
    name = f"model.layers.{index}"
    heads, kv_heads = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
    hidden, inner = config.hidden_size, config.intermediate_size

    def fuse(fused: str, parts: dict[str, int], bias: bool) -> tuple[LinearSpec, ...]:
        # A fused weight has one format, so parts of different formats stay apart.
        modules = {f"{name}.{part}": N for part, N in parts.items()}
        flags = {quantized(module) for module in modules}
        if len(flags) == 1:
            return (LinearSpec(f"{name}.{fused}", tuple(modules.items()), hidden, bias, flags.pop()),)
        return tuple(single(module, N, hidden, bias) for module, N in modules.items())

    def single(module: str, N: int, K: int, bias: bool) -> LinearSpec:
        return LinearSpec(module, ((module, N),), K, bias, quantized(module))

    return LayerSpec(
        name,
        qkv=fuse(
            "self_attn.qkv_proj",
            {"self_attn.q_proj": heads, "self_attn.k_proj": kv_heads, "self_attn.v_proj": kv_heads},
            config.qkv_bias,
        ),
        o=single(f"{name}.self_attn.o_proj", hidden, heads, config.o_bias),
        gate_up=fuse("mlp.gate_up_proj", {"mlp.gate_proj": inner, "mlp.up_proj": inner}, config.mlp_bias),
        down=single(f"{name}.mlp.down_proj", hidden, inner, config.mlp_bias),
    )


def embedding_spec(config: DecoderConfig, quantized: Quantized) -> LinearSpec:
    """Describe the token embedding: a table [vocab_size, hidden_size], stored like a linear layer."""
    return LinearSpec(
        EMBEDDING, ((EMBEDDING, config.vocab_size),), config.hidden_size, quantized=quantized(EMBEDDING)
    )


def head_spec(config: DecoderConfig, quantized: Quantized) -> LinearSpec | None:
    """Describe the head, or return None where the embedding's own weight is the head.

    A tied model whose checkpoint quantized only ``lm_head`` has a head of its own.
    """
    if config.tie_word_embeddings and not quantized(HEAD):
        return None
    return LinearSpec(HEAD, ((HEAD, config.vocab_size),), config.hidden_size, quantized=quantized(HEAD))


def norms(config: DecoderConfig) -> Iterator[tuple[str, int]]:
    """Yield (module, width) of every RMSNorm, in the order of the model."""
    for index in range(config.num_hidden_layers):
        layer = f"model.layers.{index}"
        if config.qk_norm:
            yield f"{layer}.self_attn.q_norm", config.head_dim
            yield f"{layer}.self_attn.k_norm", config.head_dim
        yield f"{layer}.input_layernorm", config.hidden_size
        yield f"{layer}.post_attention_layernorm", config.hidden_size
    yield FINAL_NORM, config.hidden_size
