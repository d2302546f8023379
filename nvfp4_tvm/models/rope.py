"""Rotary position embedding: the frequencies of every supported scaling, and the function that applies them.

TVM's own RoPE evaluates the frequencies symbolically, and its YaRN differs from transformers (no attention
factor, a ramp over the wrong dimensions, bounds not rounded). Here they are computed once, in float32 as
transformers does, and reach the compiled function as a constant table: the paged KV cache passes its
"extension factors" through to the function that splits and rotates Q, K, V, :func:`split_rotary`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script import tirx as T

from nvfp4_tvm.errors import NVFP4Error
from nvfp4_tvm.models.values import number, positive_integer

#: transformers' default when a config names no ``rope_theta`` (``RotaryEmbeddingConfigMixin.default_theta``).
DEFAULT_THETA = 10000.0
ROPE_TYPES = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class Rope:
    """Rotary embedding of one model.

    Attributes
    ----------
    inv_freq : tuple of float
        ``head_dim / 2`` float32 values: the angle of dimension pair i at position p is ``p * inv_freq[i]``.
    attention_factor : float
        Multiplies cosine and sine (YaRN, https://arxiv.org/abs/2309.00071, section 3.4); 1 for the others.
    rope_type : str
        One of :data:`ROPE_TYPES`.
    """

    inv_freq: tuple[float, ...]
    attention_factor: float = 1.0
    rope_type: str = "default"

    @classmethod
    @np.errstate(over="ignore", divide="ignore", invalid="ignore")  # what is wrong shows in the result
    def from_hf(cls, config: Mapping[str, Any], head_dim: int, max_position_embeddings: int) -> Rope:
        """Read ``rope_parameters`` (transformers 5) or ``rope_theta`` with ``rope_scaling`` (before).

        Raises
        ------
        NVFP4Error
            If the type is not supported, or a parameter is missing or out of range; names the key.
        """
        key = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
        found = config.get(key) or {}
        if not isinstance(found, Mapping):
            raise NVFP4Error(f"config: {key} is {found!r:.80}, expected an object with rope_type")
        parameters: dict[str, Any] = {"rope_theta": config.get("rope_theta") or DEFAULT_THETA}
        parameters.update((name, value) for name, value in found.items() if value is not None)
        rope_type = parameters.get("rope_type", parameters.get("type", "default"))
        if rope_type not in ROPE_TYPES:
            raise NVFP4Error(
                f"config: {key}.rope_type is {rope_type!r:.80}, expected one of {', '.join(ROPE_TYPES)}; "
                f"this model's rotary embedding is not supported"
            )
        partial = parameters.get("partial_rotary_factor", config.get("partial_rotary_factor")) or 1.0
        if partial != 1.0:
            raise NVFP4Error(
                f"config: partial_rotary_factor is {partial!r:.80}, expected 1: partial RoPE is not supported"
            )
        # as transformers: the top-level key wins, and the context length stands in for a missing one
        if config.get("original_max_position_embeddings"):
            parameters["original_max_position_embeddings"] = config["original_max_position_embeddings"]
        parameters.setdefault("original_max_position_embeddings", max_position_embeddings)

        theta = number(parameters, "rope_theta", prefix=f"{key}.", above=1.0)
        exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
        periods = np.power(np.float32(theta), exponent, dtype=np.float32)
        inv_freq, attention_factor = np.float32(1) / periods, 1.0
        if rope_type == "linear":
            inv_freq = inv_freq / np.float32(number(parameters, "factor", prefix=f"{key}.", above=0.0))
        elif rope_type == "llama3":
            inv_freq = _llama3(inv_freq, parameters, f"{key}.")
        elif rope_type == "yarn":
            inv_freq, attention_factor = _yarn(periods, theta, parameters, f"{key}.", max_position_embeddings)
        inv_freq = inv_freq.astype(np.float32)
        if not (np.isfinite(inv_freq).all() and (inv_freq > 0).all() and math.isfinite(attention_factor)):
            raise NVFP4Error(
                f"config: {key} gives the frequencies {inv_freq.max():g} to {inv_freq.min():g}, expected positive "
                "finite numbers; correct its values"
            )
        return cls(tuple(inv_freq.tolist()), attention_factor, rope_type)

    @property
    def table(self) -> np.ndarray:
        """``inv_freq`` as float32 [head_dim / 2]."""
        return np.array(self.inv_freq, np.float32)


def _llama3(inv_freq: np.ndarray, parameters: Mapping[str, Any], prefix: str) -> np.ndarray:
    """Llama 3.1: divide long wavelengths by the factor, keep short ones, blend between."""
    factor = number(parameters, "factor", prefix=prefix, above=0.0)
    low = number(parameters, "low_freq_factor", prefix=prefix, above=0.0)
    high = number(parameters, "high_freq_factor", prefix=prefix, above=0.0)
    context = positive_integer(parameters, "original_max_position_embeddings", prefix=prefix)
    if high <= low:
        raise NVFP4Error(
            f"config: {prefix}high_freq_factor is {high:g}, expected more than low_freq_factor ({low:g})"
        )
    wavelength = np.float32(2 * math.pi) / inv_freq
    blend = (np.float32(context) / wavelength - np.float32(low)) / np.float32(high - low)
    blend = np.clip(blend, np.float32(0), np.float32(1))
    return (1 - blend) * inv_freq / np.float32(factor) + blend * inv_freq


def _yarn(
    periods: np.ndarray,
    theta: float,
    parameters: Mapping[str, Any],
    prefix: str,
    max_position_embeddings: int,
) -> tuple[np.ndarray, float]:
    """YaRN (https://arxiv.org/abs/2309.00071): interpolate the slow dimensions, keep the fast ones."""
    context = positive_integer(parameters, "original_max_position_embeddings", prefix=prefix)
    scaled = {"factor": max_position_embeddings / context, **parameters}
    factor = number(scaled, "factor", prefix=prefix, above=0.0)
    dim = 2 * periods.size

    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if "attention_factor" in parameters:
        attention_factor = number(parameters, "attention_factor", prefix=prefix, above=0.0)
    elif parameters.get("mscale") and parameters.get("mscale_all_dim"):
        attention_factor = mscale(number(parameters, "mscale", prefix=prefix)) / mscale(
            number(parameters, "mscale_all_dim", prefix=prefix)
        )
    else:
        attention_factor = mscale(1.0)

    def dimension(rotations: float) -> float:
        return dim * math.log(context / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    defaults = {"beta_fast": 32, "beta_slow": 1, **{k: v for k, v in parameters.items() if v}}
    low = dimension(number(defaults, "beta_fast", prefix=prefix, above=0.0))
    high = dimension(number(defaults, "beta_slow", prefix=prefix, above=0.0))
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001  # as the reference: a step instead of a division by zero
    ramp = np.clip((np.arange(dim // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low), 0, 1)
    kept = np.float32(1) - ramp.astype(np.float32)
    inv_freq = np.float32(1) / (np.float32(factor) * periods) * (1 - kept) + np.float32(1) / periods * kept
    return inv_freq.astype(np.float32), attention_factor


def split_rotary(
    rope: Rope, num_heads: int, num_kv_heads: int, head_dim: int, dtype: str
) -> tirx.PrimFunc:  # fmt: skip
    """Build ``(qkv [n, Hq + 2 Hkv, D], positions int32 [n], q, k, v, inv_freq float32 [D / 2])``.

    Splits ``qkv`` into q [n, Hq, D], k and v [n, Hkv, D] and rotates q and k in float32; as in
    transformers, dimension d pairs with d + D / 2.
    """
    half, total = head_dim // 2, num_heads + 2 * num_kv_heads
    factor = rope.attention_factor

    def rotated(
        qkv: T.Buffer, inv_freq: T.Buffer, position: tirx.Expr, s: tirx.Var, h: tirx.Var, d: tirx.Var
    ) -> Any:
        angle = tirx.Var("angle", "float32")
        # the partner of d: its index stays inside the row for both branches
        partner = qkv[s, h, (d + half) % head_dim].astype("float32")
        value = tirx.cos(angle) * qkv[s, h, d].astype("float32") + tirx.sin(angle) * tirx.Select(
            d < half, -partner, partner
        )
        if factor != 1.0:
            value = value * tirx.const(factor, "float32")
        return tirx.Let(angle, position.astype("float32") * inv_freq[d % half], value.astype(dtype))

    @T.prim_func(s_tir=True)
    def rotary(
        var_qkv: T.handle,
        var_positions: T.handle,
        var_q: T.handle,
        var_k: T.handle,
        var_v: T.handle,
        var_inv_freq: T.handle,
    ) -> None:
        # 8: opaque, so that nothing is fused into what the KV cache calls by itself
        T.func_attr({"op_pattern": 8, "tirx.noalias": True})
        n = T.int32()
        positions_offset = T.int32()
        qkv = T.match_buffer(var_qkv, (n, total, head_dim), dtype)
        positions = T.match_buffer(var_positions, (n,), "int32", elem_offset=positions_offset)
        q = T.match_buffer(var_q, (n, num_heads, head_dim), dtype)
        k = T.match_buffer(var_k, (n, num_kv_heads, head_dim), dtype)
        v = T.match_buffer(var_v, (n, num_kv_heads, head_dim), dtype)
        inv_freq = T.match_buffer(var_inv_freq, (half,), "float32")
        for iters in T.grid(n, total, head_dim):
            with T.sblock("split_rotary"):
                s, h, d = T.axis.remap("SSS", iters)
                if h < num_heads:
                    q[s, h, d] = rotated(qkv, inv_freq, positions[s], s, h, d)
                elif h < num_heads + num_kv_heads:
                    k[s, h - num_heads, d] = rotated(qkv, inv_freq, positions[s], s, h, d)
                else:
                    v[s, h - (num_heads + num_kv_heads), d] = qkv[s, h, d]

    return rotary
