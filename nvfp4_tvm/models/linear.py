"""Linear layers and embeddings with a plain or an NVFP4 weight, on ``tvm.relax.frontend.nn``.

The names of their parameters are those of :mod:`nvfp4_tvm.models.parameters`: ``weight`` and ``bias``, or
``codes``, ``scales`` and ``global_scale``.
"""

from __future__ import annotations

from tvm import relax
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor, op
from tvm.relax.frontend.nn.core import wrap_nested

from nvfp4_tvm import layout
from nvfp4_tvm.models.structure import LinearSpec
from nvfp4_tvm.op.dequantize import dequantize


class PlainWeight(nn.Module):
    """``weight [N, K]`` in the model's dtype, and ``bias [N]`` or None."""

    def __init__(self, spec: LinearSpec, dtype: str):
        super().__init__()
        self.dtype = dtype
        self.weight = nn.Parameter((spec.N, spec.K), dtype)
        self.bias = nn.Parameter((spec.N,), dtype) if spec.bias else None

    def weight_expr(self) -> relax.Expr:
        """Return the weight as a Relax expression ``[N, K]``."""
        return self.weight._expr

    def product(self, x: Tensor, out_dtype: str) -> Tensor:
        """``x [..., K]`` times the transposed weight, plus the bias, accumulated in float32."""
        # a 16-bit relax.matmul would accumulate in 16 bits
        y = _matmul(x, self.weight_expr(), "float32")
        if self.bias is not None:
            y = y + op.astype(self.bias, "float32")
        return op.astype(y, out_dtype)


class NVFP4Weight(nn.Module):
    """``codes uint8[N, K/2]``, ``scales uint8[N, K/16]``, ``global_scale float32[N]``, and ``bias``.

    One global scale a row, so that the parts of a fused layer keep their own.
    """

    def __init__(self, spec: LinearSpec, dtype: str):
        layout.check_weight(spec.N, spec.K, spec.name)
        super().__init__()
        self.dtype = dtype
        self.codes = nn.Parameter((spec.N, spec.K // 2), "uint8")
        self.scales = nn.Parameter((spec.N, spec.K // layout.GROUP_SIZE), "uint8")
        self.global_scale = nn.Parameter((spec.N,), "float32")
        self.bias = nn.Parameter((spec.N,), dtype) if spec.bias else None

    def weight_expr(self) -> relax.Expr:
        """Return the weight as a Relax expression ``[N, K]``."""
        weight = dequantize(self.codes._expr, self.scales._expr, self.global_scale._expr, self.dtype)
        return relax.BlockBuilder.current().emit(weight, "weight")

    def product(self, x: Tensor, out_dtype: str) -> Tensor:
        """``x [..., K]`` times the transposed weight, plus the bias.

        In the form that RewriteNVFP4Matmul looks for; ``nvfp4.matmul`` accumulates in float32.
        """
        y = _matmul(x, self.weight_expr(), out_dtype)
        return y if self.bias is None else y + self.bias


def _matmul(x: Tensor, weight: relax.Expr, out_dtype: str) -> Tensor:
    transposed = relax.BlockBuilder.current().emit(relax.op.permute_dims(weight), "transposed")
    return wrap_nested(relax.op.matmul(x._expr, transposed, out_dtype=out_dtype), "matmul")


class PlainLinear(PlainWeight):
    """A linear layer."""

    def forward(self, x: Tensor, out_dtype: str | None = None) -> Tensor:
        """``[..., K]`` to ``[..., N]``, in the model's dtype unless ``out_dtype`` says otherwise."""
        return self.product(x, out_dtype or self.dtype)


class NVFP4Linear(NVFP4Weight):
    """A linear layer with an NVFP4 weight."""

    def forward(self, x: Tensor, out_dtype: str | None = None) -> Tensor:
        """``[..., K]`` to ``[..., N]``, in the model's dtype unless ``out_dtype`` says otherwise."""
        return self.product(x, out_dtype or self.dtype)


class PlainEmbedding(PlainWeight):
    """A token embedding."""

    def forward(self, ids: Tensor) -> Tensor:
        """``int32 [...]`` to ``[..., K]``."""
        return _take(self.weight_expr(), ids)


class NVFP4Embedding(NVFP4Weight):
    """A token embedding with an NVFP4 table."""

    def forward(self, ids: Tensor) -> Tensor:
        """``int32 [...]`` to ``[..., K]``."""
        return _take(self.weight_expr(), ids)


def _take(table: relax.Expr, ids: Tensor) -> Tensor:
    # "clip": the default mode reads out of bounds for ids outside the table
    return wrap_nested(relax.op.take(table, ids._expr, axis=0, mode="clip"), "embedding")


def linear(spec: LinearSpec, dtype: str) -> PlainLinear | NVFP4Linear:
    """Build the linear layer that ``spec`` describes, for activations in ``dtype``."""
    return NVFP4Linear(spec, dtype) if spec.quantized else PlainLinear(spec, dtype)


def embedding(spec: LinearSpec, dtype: str) -> PlainEmbedding | NVFP4Embedding:
    """Build the embedding table that ``spec`` describes."""
    return NVFP4Embedding(spec, dtype) if spec.quantized else PlainEmbedding(spec, dtype)


def fused(layers: list[PlainLinear | NVFP4Linear], x: Tensor) -> Tensor:
    """Apply one fused layer, or several whose outputs are concatenated."""
    outputs = [layer(x) for layer in layers]
    return outputs[0] if len(outputs) == 1 else op.concat(outputs, dim=-1)
