"""Linear layers and embeddings of MLC-LLM's models with a packed NVFP4 weight.

Their parameters are ``words``, ``scales`` and ``global_scale`` in the shapes of :mod:`nvfp4_tvm.layout`, for the N
and K of one shard.
"""

from __future__ import annotations

from tvm import relax
from tvm.relax.frontend import nn

from nvfp4_tvm import layout
from nvfp4_tvm.mlc import compat
from nvfp4_tvm.mlc.sharding import copy_sharding
from nvfp4_tvm.op.matmul import matmul
from nvfp4_tvm.op.take import take

#: Parameters of a packed weight, in the order in which a layer's weight is loaded.
FIELDS = ("words", "scales", "global_scale")


class NVFP4Weight(nn.Module):
    """The three parameters of a packed weight ``[N, K]``.

    Parameters
    ----------
    name : str
        Of the layer, for errors.
    N, K : int
        Of one shard.
    dtype : str
        Of the model.
    """

    def __init__(self, name: str, N: int, K: int, dtype: str):
        super().__init__()
        layout.check_weight(N, K, f"layer {name}")
        self.N, self.K, self.dtype = N, K, dtype
        self.words = nn.Parameter(layout.words_shape(N, K), "uint32")
        self.scales = nn.Parameter(layout.scales_shape(N, K), "uint32")
        self.global_scale = nn.Parameter(layout.global_scale_shape(N), "float32")

    def packed(self) -> dict[str, nn.Parameter]:
        """Return the three parameters by name."""
        return {field: getattr(self, field) for field in FIELDS}

    def exprs(self) -> tuple[relax.Expr, relax.Expr, relax.Expr]:
        """Return the three parameters as Relax expressions, in the order that operators take them."""
        return self.words._expr, self.scales._expr, self.global_scale._expr

    def product(self, x: nn.Tensor, out_dtype: str | None, bias: nn.Tensor | None = None) -> nn.Tensor:
        """``x [..., K]`` times the transposed weight, plus the bias, accumulated in float32."""
        fused = bias if bias is not None and bias.dtype == x.dtype else None
        bias_expr = None if fused is None else fused._expr
        expr = matmul(x._expr, *self.exprs(), bias_expr, N=self.N, out_dtype=out_dtype)
        y = compat.tensor(expr, "nvfp4_matmul")
        return y if fused is bias else y + bias

    def to(self, dtype: str | None = None) -> None:
        """Change the dtype of the activations; packed parameters have theirs."""
        if dtype is not None:
            self.dtype = dtype


class NVFP4Linear(NVFP4Weight):
    """``nn.Linear`` with a packed weight."""

    def __init__(
        self, name: str, N: int, K: int, dtype: str, *, bias: bool = False, out_dtype: str | None = None
    ):
        super().__init__(name, N, K, dtype)
        self.out_dtype = out_dtype
        self.bias = nn.Parameter((N,), out_dtype or dtype) if bias else None

    @classmethod
    def from_module(
        cls, layer: nn.Linear, name: str, shape: tuple[int, int], dtype: str, shards: int
    ) -> NVFP4Linear:
        """Return the layer that takes the place of a linear layer whose weight has ``shape``.

        Raises
        ------
        ShapeError
            If the weight cannot be NVFP4, or not in this number of shards.
        """
        new = cls(name, *shape, dtype, bias=layer.bias is not None, out_dtype=layer.out_dtype)
        if new.bias is not None:
            new.bias.attrs = layer.bias.attrs
        copy_sharding(layer.weight, new.packed(), name, shards)
        return new

    def forward(self, x: nn.Tensor) -> nn.Tensor:
        """``[..., K]`` to ``[..., N]``."""
        return self.product(x, self.out_dtype, self.bias)

    def to(self, dtype: str | None = None) -> None:
        """Change the dtype of the activations and of the bias, unless the layer has a dtype of its own."""
        super().to(dtype)
        if dtype is not None and self.bias is not None and self.out_dtype is None:
            self.bias.to(dtype=dtype)


class NVFP4Embedding(NVFP4Weight):
    """``nn.Embedding`` with a packed table, and the head that is tied to it."""

    @classmethod
    def from_module(
        cls, layer: nn.Embedding, name: str, shape: tuple[int, int], dtype: str, shards: int
    ) -> NVFP4Embedding:
        """Return the layer that takes the place of an embedding whose table has ``shape``.

        Raises
        ------
        ShapeError
            As `NVFP4Linear.from_module`.
        """
        new = cls(name, *shape, dtype)
        copy_sharding(layer.weight, new.packed(), name, shards)
        return new

    def forward(self, ids: nn.Tensor) -> nn.Tensor:
        """``int32 [...]`` to ``[..., K]``."""
        rows = take(*self.exprs(), ids._expr, N=self.N, K=self.K, out_dtype=self.dtype)
        return compat.tensor(rows, "embedding")

    def lm_head_forward(self, x: nn.Tensor) -> nn.Tensor:
        """Logits in float32, of a head that is tied to the embedding."""
        return self.product(x, "float32")
