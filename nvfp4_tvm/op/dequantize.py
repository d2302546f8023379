"""``nvfp4.dequantize`` and ``nvfp4.dequantize_packed``: an NVFP4 weight as floating point.

``nvfp4.dequantize(codes uint8[N, K/2], scales uint8[N, K/16], global_scale float32[] | [1] | [N])`` is what a
frontend writes; the passes look for it. ``nvfp4.dequantize_packed(words, scales, global_scale)`` is the same
on the packed layout, for uses that are no matmul. Both return ``out_dtype[N, K]``; code times block scale is
exact, the product with the global scale is rounded once to float32 and once to ``out_dtype``.
"""

from __future__ import annotations

from tvm import relax, te, tirx

from nvfp4_tvm import layout
from nvfp4_tvm.op.matmul import packed_shape
from nvfp4_tvm.op.pack import canonical_shape
from nvfp4_tvm.op.registry import call, register
from nvfp4_tvm.schedules.intrin.decode import e2m1_to_float32, e4m3_to_float32, packed_weight, u32

NAME = "nvfp4.dequantize"
PACKED_NAME = "nvfp4.dequantize_packed"


def _infer_type(call: relax.Call, _builder: relax.BlockBuilder) -> relax.Type:
    N, K, _ = canonical_shape(NAME, *call.args)
    return relax.TensorType((N, K), call.attrs["out_dtype"])


def _legalize(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    N, K, rows = canonical_shape(NAME, *call.args)

    def te_dequantize(codes: te.Tensor, scales: te.Tensor, global_scale: te.Tensor) -> te.Tensor:
        def element(n: tirx.Expr, k: tirx.Expr) -> tirx.Expr:
            code = codes[n, k // 2].astype("uint32") >> (k % 2 * 4).astype("uint32")
            scale = scales[n, k // layout.GROUP_SIZE].astype("uint32")
            row = global_scale[n if rows > 1 else 0] if global_scale.ndim else global_scale()
            return (e2m1_to_float32(code & u32(15)) * e4m3_to_float32(scale) * row).astype(
                call.attrs["out_dtype"]
            )

        return te.compute((N, K), element, name="dequantize")

    return builder.call_te(te_dequantize, *call.args, primfunc_name_hint="nvfp4_dequantize")


OP = register(NAME, "Dequantize a canonical NVFP4 weight.", 3, _infer_type, _legalize)


def dequantize(
    codes: relax.Expr, scales: relax.Expr, global_scale: relax.Expr, out_dtype: str = "float32"
) -> relax.Call:
    """Dequantize a canonical NVFP4 weight to ``out_dtype [N, K]``."""
    return call(OP, [codes, scales, global_scale], out_dtype=out_dtype)


def _infer_type_packed(call: relax.Call, _builder: relax.BlockBuilder) -> relax.Type:
    N, K = int(call.attrs["N"]), int(call.attrs["K"])
    packed_shape(PACKED_NAME, N, K, *call.args)
    return relax.TensorType((N, K), call.attrs["out_dtype"])


def _legalize_packed(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    N, K = int(call.attrs["N"]), int(call.attrs["K"])

    def te_dequantize(words: te.Tensor, scales: te.Tensor, global_scale: te.Tensor) -> te.Tensor:
        def element(n: tirx.Expr, k: tirx.Expr) -> tirx.Expr:
            return (packed_weight(words, scales, n, k) * global_scale[n]).astype(call.attrs["out_dtype"])

        return te.compute((N, K), element, name="dequantize")

    return builder.call_te(te_dequantize, *call.args, primfunc_name_hint="nvfp4_dequantize_packed")


PACKED_OP = register(PACKED_NAME, "Dequantize a packed weight.", 3, _infer_type_packed, _legalize_packed)


def dequantize_packed(
    words: relax.Expr, scales: relax.Expr, global_scale: relax.Expr, N: int, K: int, out_dtype: str
) -> relax.Call:
    """Dequantize a packed NVFP4 weight to ``out_dtype [N, K]``."""
    return call(PACKED_OP, [words, scales, global_scale], N=N, K=K, out_dtype=out_dtype)
