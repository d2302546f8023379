"""Experts of MLC-LLM's mixture models with packed NVFP4 weights.

``MixtralExperts`` holds the weights ``[E, N, K]`` of one layer of E experts, whichever model it is in. Packed,
each of the three parameters has E in front.
"""

from __future__ import annotations

from mlc_llm.nn.expert import MixtralExperts
from tvm import relax
from tvm.relax.frontend import nn

from nvfp4_tvm.errors import ShapeError
from nvfp4_tvm.mlc import compat
from nvfp4_tvm.mlc.linear import NVFP4Weight
from nvfp4_tvm.mlc.sharding import copy_sharding
from nvfp4_tvm.op.grouped_matmul import grouped_matmul


class NVFP4Experts(NVFP4Weight):
    """``MixtralExperts`` with packed weights.

    Parameters
    ----------
    name : str
        Of the layer, for errors.
    experts, N, K : int
        Number of experts, and the shape of each one's weight in one shard.
    dtype : str
        Of the model.
    """

    def __init__(self, name: str, experts: int, N: int, K: int, dtype: str):
        super().__init__(name, N, K, dtype)
        self.name, self.experts = name, experts
        for field, parameter in self.packed().items():
            setattr(self, field, nn.Parameter((experts, *parameter.shape), parameter.dtype))

    @classmethod
    def from_module(
        cls, layer: MixtralExperts, name: str, shape: tuple[int, int, int], dtype: str, shards: int
    ) -> NVFP4Experts:
        """Return the layer that takes the place of experts whose weights have ``shape``.

        Raises
        ------
        ShapeError
            If the weights cannot be NVFP4, or not in this number of shards.
        """
        new = cls(name, *shape, dtype)
        copy_sharding(layer.weight, new.packed(), name, shards, leading=1)
        return new

    def forward(self, x: nn.Tensor, indptr: nn.Tensor) -> nn.Tensor:
        """``[M, K]`` to ``[M, N]``, each row by its expert.

        Parameters
        ----------
        x : Tensor
            Rows sorted by expert; or of one token, ``[1, K]`` or ``[experts of the token, K]``.
        indptr : Tensor
            Where each expert's rows begin and end, int32 ``[E + 1]``; or where they end, int64 ``[E]``, as MLC-LLM
            asks for beside CUTLASS; or the experts of one token, int32 ``[1, experts of the token]``.

        Raises
        ------
        ShapeError
            If ``indptr`` has another form.
        """
        expr = indptr._expr
        if indptr.ndim == 1 and indptr.dtype == "int64" and list(indptr.shape) == [self.experts]:
            ends = relax.op.astype(expr, "int32")
            expr = relax.op.concat([relax.op.zeros((1,), "int32"), ends], axis=0)
        elif indptr.dtype != "int32":
            raise ShapeError(
                f"layer {self.name}: indptr is {indptr.dtype}{list(indptr.shape)}, expected "
                f"int32[{self.experts + 1}], int64[{self.experts}] or int32[1, experts of a token]"
            )
        return compat.tensor(grouped_matmul(x._expr, *self.exprs(), expr, N=self.N), "nvfp4_experts")
