"""What of a Hugging Face ``config.json`` a decoder needs, and how the supported model types differ."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from nvfp4_tvm.errors import NVFP4Error
from nvfp4_tvm.models.rope import Rope
from nvfp4_tvm.models.values import boolean, number, positive_integer, token_ids

_LOG = logging.getLogger(__name__)


#: Eight times the deepest model there is; every layer takes time before a tensor is looked at.
MAX_LAYERS = 1024
#: Likewise: the rotary embedding's table is as long.
MAX_HEAD_DIM = 4096


@dataclass(frozen=True)
class Architecture:
    """How one model type differs from Llama.

    Attributes
    ----------
    causal_lm : str
        transformers' class; a config that names another task's class is refused.
    qkv_bias, o_bias, mlp_bias : bool or str
        A constant, or the config key that says it.
    qk_norm : bool
        RMSNorm of each head of Q and K before the rotary embedding.
    head_dim : int or None
        transformers' default; None derives hidden_size / num_attention_heads.
    sliding_window : {"never", "always", "use_sliding_window"}
        Whether the key ``sliding_window`` is ignored, holds, or needs ``use_sliding_window``.
    default_sliding_window : int or None
        transformers' value for a config without the key.
    """

    causal_lm: str
    qkv_bias: bool | str = False
    o_bias: bool | str = False
    mlp_bias: bool | str = False
    qk_norm: bool = False
    head_dim: int | None = None
    sliding_window: Literal["never", "always", "use_sliding_window"] = "never"
    default_sliding_window: int | None = None


#: By ``model_type``; the differences are those of transformers' modeling_*.py.
ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(
        "LlamaForCausalLM", qkv_bias="attention_bias", o_bias="attention_bias", mlp_bias="mlp_bias"
    ),
    "mistral": Architecture("MistralForCausalLM", sliding_window="always", default_sliding_window=4096),
    "qwen2": Architecture("Qwen2ForCausalLM", qkv_bias=True, sliding_window="use_sliding_window"),
    "qwen3": Architecture(
        "Qwen3ForCausalLM",
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        qk_norm=True,
        head_dim=128,
        sliding_window="use_sliding_window",
    ),
}


@dataclass(frozen=True)
class DecoderConfig:
    """A decoder-only transformer: token embedding, layers of attention and gated MLP, norm, head.

    Attributes
    ----------
    model_type : str
        Key of :data:`ARCHITECTURES`.
    hidden_size, intermediate_size, vocab_size : int
        Widths in elements.
    num_hidden_layers, num_attention_heads, num_key_value_heads, head_dim : int
        ``num_attention_heads`` is a multiple of ``num_key_value_heads``.
    max_position_embeddings : int
        Longest context in tokens. That of the model or, if shorter, its sliding window: within the window
        attention is the same without one, and TVM 0.27 applies windows between chunks of a prompt but not
        inside one.
    rms_norm_eps : float
        Added to the mean square.
    rope : Rope
        Rotary embedding.
    tie_word_embeddings, qkv_bias, o_bias, mlp_bias, qk_norm : bool
        Parts present or not.
    bos_token_id : int or None
        The token that starts a text, if the config names one.
    eos_token_ids : tuple of int
        Tokens that end a text.
    """

    model_type: str
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope: Rope
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> DecoderConfig:
        """Read a ``config.json`` as transformers 4 or 5 writes it.

        Raises
        ------
        NVFP4Error
            If the model is not supported or a value is missing or out of range. The message names the key,
            what was found and what is expected.
        """
        model_type = config.get("model_type")
        architecture = ARCHITECTURES.get(model_type) if isinstance(model_type, str) else None
        if architecture is None or not isinstance(model_type, str):
            raise NVFP4Error(
                f"config: model_type is {model_type!r:.80}, expected one of {', '.join(ARCHITECTURES)}; "
                f"use nvfp4_tvm.torch for other models"
            )
        classes = config.get("architectures") or [architecture.causal_lm]
        if classes != [architecture.causal_lm]:
            raise NVFP4Error(
                f"config: architectures is {classes!r:.80}, expected ['{architecture.causal_lm}']"
            )
        activation = config.get("hidden_act") or "silu"
        if activation not in ("silu", "swish"):
            raise NVFP4Error(
                f"config: hidden_act is {activation!r:.80}, expected 'silu'; no other is supported"
            )

        hidden_size = positive_integer(config, "hidden_size")
        layers = positive_integer(config, "num_hidden_layers", most=MAX_LAYERS)
        heads = positive_integer(config, "num_attention_heads")
        kv_heads = positive_integer(config, "num_key_value_heads", heads)
        if heads % kv_heads:
            raise NVFP4Error(
                f"config: num_key_value_heads is {kv_heads}, "
                f"expected a divisor of {heads} (num_attention_heads)"
            )
        default_head_dim = architecture.head_dim
        if default_head_dim is None and not hidden_size % heads:
            default_head_dim = hidden_size // heads
        head_dim = positive_integer(config, "head_dim", default_head_dim, most=MAX_HEAD_DIM)
        if head_dim % 2:
            raise NVFP4Error(f"config: head_dim is {head_dim}, expected an even number for rotary embeddings")
        context = positive_integer(config, "max_position_embeddings")
        window = _sliding_window(config, architecture, layers, context)
        if window is not None:
            _LOG.warning("sliding_window: context limited to %d tokens of the model's %d", window, context)
        bos = token_ids(config, "bos_token_id")

        def flag(value: bool | str) -> bool:
            return value if isinstance(value, bool) else boolean(config, value, False)

        return cls(
            model_type=model_type,
            hidden_size=hidden_size,
            intermediate_size=positive_integer(config, "intermediate_size"),
            vocab_size=positive_integer(config, "vocab_size"),
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            max_position_embeddings=context if window is None else window,
            rms_norm_eps=number(config, "rms_norm_eps", 1e-6, above=0.0),
            rope=Rope.from_hf(config, head_dim, context),
            tie_word_embeddings=boolean(config, "tie_word_embeddings", False),
            qkv_bias=flag(architecture.qkv_bias),
            o_bias=flag(architecture.o_bias),
            mlp_bias=flag(architecture.mlp_bias),
            qk_norm=architecture.qk_norm,
            bos_token_id=bos[0] if bos else None,
            eos_token_ids=token_ids(config, "eos_token_id"),
        )


def _sliding_window(
    config: Mapping[str, Any], architecture: Architecture, layers: int, context: int
) -> int | None:
    """Return the window of the layers that have one, or None if there is none shorter than the context."""
    rule = architecture.sliding_window
    if rule == "never" or (rule != "always" and not boolean(config, rule, False)):
        return None
    if "sliding_window" in config and config["sliding_window"] is None:
        return None
    window = positive_integer(config, "sliding_window", architecture.default_sliding_window)
    if window >= context:
        return None
    if rule == "use_sliding_window":
        types = config.get("layer_types")
        if isinstance(types, list):
            slides = "sliding_attention" in types
        else:
            # transformers' Qwen configurations: the first max_window_layers (28 by default) do not slide
            slides = number(config, "max_window_layers", 28) < layers
        return window if slides else None
    return window
