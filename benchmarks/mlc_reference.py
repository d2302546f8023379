"""The Llama of a library recomputed by torch in float32, on the weights that its parameters stand for."""

from __future__ import annotations

import torch

from benchmarks.mlc_weights import Weights


class Reference:
    """Runs one sequence through all layers, a layer's weight at a time.

    Parameters
    ----------
    weights : Weights
        Of the library.
    shape : dict
        The model's configuration.
    """

    def __init__(self, weights: Weights, shape: dict[str, int]) -> None:
        self.weights, self.shape = weights, shape

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        scale = self.weights.plain(f"{name}.weight").float()
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.shape["rms_norm_eps"]) * scale

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ self.weights.float32(name).T

    def _rotate(self, x: torch.Tensor) -> torch.Tensor:
        """Apply rotary embedding to x [tokens, heads, head_dim], in halves as Hugging Face; positions from 0."""
        half = self.shape["head_dim"] // 2
        exponents = torch.arange(half, device=x.device, dtype=torch.float64) / half
        frequencies = self.shape["position_embedding_base"] ** -exponents
        angles = torch.arange(x.shape[0], device=x.device, dtype=torch.float64)[:, None] * frequencies
        cos, sin = (f(angles).float()[:, None] for f in (torch.cos, torch.sin))
        first, second = x[..., :half], x[..., half:]
        return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)

    def _attention(self, x: torch.Tensor, name: str) -> torch.Tensor:
        heads, groups, dim = (
            self.shape[k] for k in ("num_attention_heads", "num_key_value_heads", "head_dim")
        )
        qkv = self._linear(x, f"{name}.qkv_proj").view(x.shape[0], heads + 2 * groups, dim)
        q, k, v = qkv.split((heads, groups, groups), 1)
        q, k = self._rotate(q), self._rotate(k)
        k, v = (part.repeat_interleave(heads // groups, 1) for part in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) / dim**0.5
        scores = scores.masked_fill(torch.ones_like(scores[0], dtype=torch.bool).triu(1), -torch.inf)
        out = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)
        return self._linear(out.reshape(x.shape[0], heads * dim), f"{name}.o_proj")

    @torch.no_grad()
    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits [tokens, vocab] of a sequence whose embeddings are x [tokens, hidden]."""
        torch.backends.cuda.matmul.allow_tf32 = False
        x = x.float()
        for layer in range(self.shape["num_hidden_layers"]):
            name = f"model.layers.{layer}"
            x = x + self._attention(self._norm(x, f"{name}.input_layernorm"), f"{name}.self_attn")
            gate, up = self._linear(
                self._norm(x, f"{name}.post_attention_layernorm"), f"{name}.mlp.gate_up_proj"
            ).chunk(2, -1)
            x = x + self._linear(torch.nn.functional.silu(gate) * up, f"{name}.mlp.down_proj")
        return self._linear(self._norm(x, "model.norm"), "lm_head")
