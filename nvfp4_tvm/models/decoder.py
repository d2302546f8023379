"""The decoder as Relax functions, from a configuration and a statement of which modules are NVFP4.

Functions (``seq_len`` and ``batch_size`` symbolic; the weights follow as separate arguments in the order of
:attr:`ExportedDecoder.params`):

- ``prefill(input_ids int32 [1, seq_len], KV cache, weights...) -> float32 [1, 1, vocab]``
- ``score(input_ids int32 [1, seq_len], KV cache, weights...) -> float32 [1, seq_len, vocab]``
- ``decode(input_ids int32 [batch_size, 1], KV cache, weights...) -> float32 [batch_size, 1, vocab]``
- ``create_paged_kv_cache(max_batch_size, max_total_seq_len, prefill_chunk_size, page_size,
  support_sliding_window) -> KV cache``, where each argument is a shape of one extent.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import tvm
from tvm import te, tirx
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor, op
from tvm.relax.frontend.nn.llm.kv_cache import PagedKVCache
from tvm.target import Target

from nvfp4_tvm.errors import NVFP4Error
from nvfp4_tvm.models import kv_cache
from nvfp4_tvm.models.config import DecoderConfig
from nvfp4_tvm.models.linear import embedding, fused, linear
from nvfp4_tvm.models.structure import (
    LayerSpec,
    Quantized,
    embedding_spec,
    head_spec,
    layer_spec,
    nothing_quantized,
)

#: Dtypes of activations, plain weights and the KV cache.
DTYPES = ("float32", "float16", "bfloat16")
#: Functions whose weights are arguments.
MODEL_FUNCTIONS = ("prefill", "score", "decode")


@dataclass(frozen=True)
class ExportedDecoder:
    """A decoder in Relax.

    Attributes
    ----------
    mod : tvm.IRModule
        The functions listed in the module's documentation, and the attention functions of the KV cache.
    params : dict of str to (shape, dtype)
        Weight arguments, in order.
    """

    mod: tvm.IRModule
    params: dict[str, tuple[tuple[int, ...], str]]


class Attention(nn.Module):
    """Self-attention with grouped queries; rotary embedding and softmax happen inside the KV cache."""

    def __init__(self, config: DecoderConfig, spec: LayerSpec, dtype: str):
        super().__init__()
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        self.qkv_names = [part.attribute for part in spec.qkv]
        for part in spec.qkv:
            setattr(self, part.attribute, linear(part, dtype))
        self.o_proj = linear(spec.o, dtype)
        self.q_norm = self.k_norm = None
        if config.qk_norm:
            norm = partial(nn.RMSNorm, config.head_dim, -1, config.rms_norm_eps, bias=False, dtype=dtype)
            self.q_norm, self.k_norm = norm(), norm()

    def forward(self, x: Tensor, cache: PagedKVCache, layer: int) -> Tensor:
        """``[b, s, hidden]`` to ``[b, s, hidden]``."""
        b, s, _ = x.shape
        heads, kv_heads, head_dim = self.heads, self.kv_heads, self.head_dim
        qkv = op.reshape(
            fused([getattr(self, name) for name in self.qkv_names], x), (b, s, heads + 2 * kv_heads, head_dim)
        )
        if self.q_norm is not None and self.k_norm is not None:
            q, k, v = op.split(qkv, [heads, heads + kv_heads], axis=2)
            qkv = op.concat([self.q_norm(q), self.k_norm(k), v], dim=2)
        out = cache.attention_with_fused_qkv(layer, qkv, heads, sm_scale=head_dim**-0.5)
        return self.o_proj(op.reshape(out, (b, s, heads * head_dim)))


class MLP(nn.Module):
    """``down(silu(gate(x)) * up(x))``, the product in float32."""

    def __init__(self, spec: LayerSpec, dtype: str):
        super().__init__()
        self.dtype = dtype
        self.gate_up_names = [part.attribute for part in spec.gate_up]
        for part in spec.gate_up:
            setattr(self, part.attribute, linear(part, dtype))
        self.down_proj = linear(spec.down, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """``[b, s, hidden]`` to ``[b, s, hidden]``."""
        gate, up = op.split(fused([getattr(self, name) for name in self.gate_up_names], x), 2, axis=-1)
        inner = op.silu(op.astype(gate, "float32")) * op.astype(up, "float32")
        return self.down_proj(op.astype(inner, self.dtype))


class Layer(nn.Module):
    """Attention and MLP, each behind an RMSNorm and beside a residual."""

    def __init__(self, config: DecoderConfig, spec: LayerSpec, dtype: str):
        super().__init__()
        eps = config.rms_norm_eps
        self.self_attn = Attention(config, spec, dtype)
        self.mlp = MLP(spec, dtype)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, -1, eps, bias=False, dtype=dtype)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, -1, eps, bias=False, dtype=dtype)

    def forward(self, x: Tensor, cache: PagedKVCache, layer: int) -> Tensor:
        """``[b, s, hidden]`` to ``[b, s, hidden]``."""
        x = x + self.self_attn(self.input_layernorm(x), cache, layer)
        return x + self.mlp(self.post_attention_layernorm(x))


class Model(nn.Module):
    """Everything before the head."""

    def __init__(self, config: DecoderConfig, dtype: str, quantized: Quantized):
        super().__init__()
        self.embed_tokens = embedding(embedding_spec(config, quantized), dtype)
        self.layers = nn.ModuleList(
            [Layer(config, layer_spec(config, i, quantized), dtype) for i in range(config.num_hidden_layers)]
        )
        self.norm = nn.RMSNorm(config.hidden_size, -1, config.rms_norm_eps, bias=False, dtype=dtype)

    def forward(self, ids: Tensor, cache: PagedKVCache) -> Tensor:
        """``int32 [b, s]`` to ``[b, s, hidden]``."""
        x = self.embed_tokens(ids)
        for i, layer in enumerate(self.layers):
            x = layer(x, cache, i)
        return self.norm(x)


class Decoder(nn.Module):
    """The whole model; its methods become the exported functions."""

    def __init__(self, config: DecoderConfig, dtype: str, target: Target, quantized: Quantized):
        super().__init__()
        self.config, self.dtype, self.target = config, dtype, target
        self.model = Model(config, dtype, quantized)
        head = head_spec(config, quantized)
        self.lm_head = None if head is None else linear(head, dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """``[b, s, hidden]`` to ``float32 [b, s, vocab]``."""
        if self.lm_head is None:
            return self.model.embed_tokens.product(hidden, "float32")
        return self.lm_head(hidden, "float32")

    def prefill(self, input_ids: Tensor, paged_kv_cache: PagedKVCache) -> Tensor:
        """Append tokens of one sequence to the cache; logits after the last one."""

        def last(x: te.Tensor) -> te.Tensor:
            _, s, hidden = x.shape
            return te.compute((1, 1, hidden), lambda _i, _j, k: x[0, s - 1, k], name="last_token")

        hidden = op.tensor_expr_op(last, "last_token", [self.model(input_ids, paged_kv_cache)])
        return self.logits(hidden)

    def score(self, input_ids: Tensor, paged_kv_cache: PagedKVCache) -> Tensor:
        """Append tokens of one sequence to the cache; logits after each of them."""
        return self.logits(self.model(input_ids, paged_kv_cache))

    def decode(self, input_ids: Tensor, paged_kv_cache: PagedKVCache) -> Tensor:
        """Append one token to each of several sequences; logits after it."""
        return self.logits(self.model(input_ids, paged_kv_cache))

    def create_paged_kv_cache(
        self,
        max_batch_size: tirx.Var,
        max_total_seq_len: tirx.Var,
        prefill_chunk_size: tirx.Var,
        page_size: tirx.Var,
        support_sliding_window: tirx.Var,
    ) -> PagedKVCache:
        """Create a KV cache; see :func:`nvfp4_tvm.models.kv_cache.create`."""
        return kv_cache.create(
            self.config,
            self.dtype,
            self.target,
            max_batch_size,
            max_total_seq_len,
            prefill_chunk_size,
            page_size,
            support_sliding_window,
        )


def export(
    config: DecoderConfig,
    *,
    dtype: str,
    target: Target,
    quantized: Quantized = nothing_quantized,
    prefill_chunk_size: int | None = None,
    max_batch_size: int | None = None,
) -> ExportedDecoder:
    """Export a decoder to Relax.

    Parameters
    ----------
    config : DecoderConfig
        The model.
    dtype : str
        One of :data:`DTYPES`: activations, plain weights and KV cache. Norms, softmax, rotary embedding, the
        gate's product and the logits are float32 in any case.
    target : tvm.target.Target
        Decides between TVM's CPU and GPU attention functions.
    quantized : callable
        Says of a checkpoint module whether it is NVFP4.
    prefill_chunk_size, max_batch_size : int, optional
        Upper bounds of ``seq_len`` and ``batch_size``, for static memory planning.

    Raises
    ------
    NVFP4Error
        If the dtype is none of :data:`DTYPES`.
    """
    if dtype not in DTYPES:
        raise NVFP4Error(f"model dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")
    model = Decoder(config, dtype, target, quantized)
    plain = {"param_mode": "plain", "effect_mode": "none"}
    prompt = {
        "input_ids": nn.spec.Tensor([1, "seq_len"], "int32"),
        "paged_kv_cache": nn.spec.Object(object_type=PagedKVCache),
    }
    spec: dict[str, dict[str, Any]] = {
        "prefill": {**prompt, "$": dict(plain)},
        "score": {**prompt, "$": dict(plain)},
        "decode": {**prompt, "input_ids": nn.spec.Tensor(["batch_size", 1], "int32"), "$": dict(plain)},
        "create_paged_kv_cache": {
            "max_batch_size": int,
            "max_total_seq_len": int,
            "prefill_chunk_size": int,
            "page_size": int,
            "support_sliding_window": int,
            "$": {"param_mode": "none", "effect_mode": "none"},
        },
    }
    mod, named = model.export_tvm(spec=spec)
    bounds = {
        name: bound
        for name, bound in (("seq_len", prefill_chunk_size), ("batch_size", max_batch_size))
        if bound is not None
    }
    if bounds:
        for name in MODEL_FUNCTIONS:
            mod[name] = mod[name].with_attr("tir_var_upper_bound", bounds)
    params = {name: (tuple(int(n) for n in param.shape), str(param.dtype)) for name, param in named}
    return ExportedDecoder(mod, params)
