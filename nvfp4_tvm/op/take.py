"""``nvfp4.take``: rows of a packed NVFP4 weight, for embedding tables that a tied head packs.

``nvfp4.take(words, scales, global_scale, indices int32|int64[...])`` returns ``out_dtype[..., K]``. Indices
outside of 0..N-1 are clipped, as ``relax.op.take(mode="clip")`` does.
"""

from __future__ import annotations

from tvm import relax, te, tirx

from nvfp4_tvm.op.matmul import packed_shape
from nvfp4_tvm.op.registry import call, register, tensor_type
from nvfp4_tvm.schedules.intrin.decode import packed_weight

NAME = "nvfp4.take"


def _infer_type(call: relax.Call, _builder: relax.BlockBuilder) -> relax.Type:
    *packed, indices = call.args
    N, K = int(call.attrs["N"]), int(call.attrs["K"])
    packed_shape(NAME, N, K, *packed)
    shape = tensor_type(NAME, "indices", indices, ("int32", "int64")).shape
    return relax.TensorType((*shape, K), call.attrs["out_dtype"])


def _legalize(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    N, K, out_dtype = int(call.attrs["N"]), int(call.attrs["K"]), call.attrs["out_dtype"]

    def te_take(
        words: te.Tensor, scales: te.Tensor, global_scale: te.Tensor, indices: te.Tensor
    ) -> te.Tensor:
        zero, last = (tirx.const(row, str(indices.dtype)) for row in (0, N - 1))

        def element(*axes: tirx.Expr) -> tirx.Expr:
            index, k = indices[axes[:-1]], axes[-1]
            n = tirx.max(tirx.min(index, last), zero)
            return (packed_weight(words, scales, n, k) * global_scale[n]).astype(out_dtype)

        return te.compute((*indices.shape, K), element, name="take")

    return builder.call_te(te_take, *call.args, primfunc_name_hint="nvfp4_take")


OP = register(NAME, "Gather rows of a packed NVFP4 weight.", 4, _infer_type, _legalize)


def take(
    words: relax.Expr,
    scales: relax.Expr,
    global_scale: relax.Expr,
    indices: relax.Expr,
    *,
    N: int,
    K: int,
    out_dtype: str,
) -> relax.Call:
    """Gather rows ``indices`` of a packed weight [N, K], dequantized to ``out_dtype``."""
    return call(OP, [words, scales, global_scale, indices], N=N, K=K, out_dtype=out_dtype)
