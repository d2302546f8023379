"""``nvfp4.pack``: a canonical weight into the packed layout, as a Relax operator and a TensorIR function.

``nvfp4.pack(codes uint8[N, K/2], scales uint8[N, K/16], global_scale float32[] | [1] | [N])``
returns ``(words, scales, global_scale)`` as :mod:`nvfp4_tvm.layout` defines them.
"""

from __future__ import annotations

from tvm import relax, te, tirx

from nvfp4_tvm import layout
from nvfp4_tvm.errors import ShapeError
from nvfp4_tvm.op.registry import call, register, static_shape, tensor_type
from nvfp4_tvm.schedules.intrin.decode import u32

NAME = "nvfp4.pack"


def canonical_shape(
    op: str, codes: relax.Expr, scales: relax.Expr, global_scale: relax.Expr
) -> tuple[int, int, int]:
    """Check the three tensors of a canonical weight.

    Returns
    -------
    tuple[int, int, int]
        N, K and the number of global scales (1 or N).

    Raises
    ------
    ShapeError
        If a dtype or shape does not fit the others.
    """
    N, half_K = static_shape(op, "codes", tensor_type(op, "codes", codes, ("uint8",), 2))
    K = 2 * half_K
    layout.check_weight(N, K, f"{op}: codes")
    groups = static_shape(op, "scales", tensor_type(op, "scales", scales, ("uint8",), 2))
    if groups != (N, K // layout.GROUP_SIZE):
        raise ShapeError(
            f"{op}: scales have shape {list(groups)}, expected [{N}, {K // layout.GROUP_SIZE}] "
            f"for codes of a weight [{N}, {K}]"
        )
    rows = static_shape(op, "global_scale", tensor_type(op, "global_scale", global_scale, ("float32",)))
    if rows not in ((), (1,), (N,)):
        raise ShapeError(f"{op}: global_scale has shape {list(rows)}, expected [], [1] or [{N}]")
    return N, K, N if rows == (N,) else 1


def packed_types(N: int, K: int) -> list[relax.TensorType]:
    """Types of (words, scales, global_scale) for a weight [N, K]."""
    return [
        relax.TensorType(layout.words_shape(N, K), "uint32"),
        relax.TensorType(layout.scales_shape(N, K), "uint32"),
        relax.TensorType(layout.global_scale_shape(N), "float32"),
    ]


def _infer_type(call: relax.Call, _builder: relax.BlockBuilder) -> relax.Type:
    N, K, _ = canonical_shape(NAME, *call.args)
    return relax.TupleType(packed_types(N, K))


def pack_words(codes: te.Tensor) -> te.Tensor:
    """TE of :func:`nvfp4_tvm.layout.pack_codes`."""
    N, K = int(codes.shape[0]), 2 * int(codes.shape[1])

    def word(t: tirx.Expr, c: tirx.Expr, h: tirx.Expr, lane: tirx.Expr, i: tirx.Expr) -> tirx.Expr:
        n, k = layout.word_origin(t, c, h, lane, i)
        canonical = u32(0)
        for byte in range(layout.CODES_PER_WORD // 2):
            canonical = canonical | codes[n, k // 2 + byte].astype("uint32") << u32(8 * byte)
        packed = layout.move_bits(canonical, layout.PACK_MOVES, u32)
        return tirx.if_then_else(tirx.all(n < N, k < K), packed, u32(0))

    return te.compute(layout.words_shape(N, K), word, name="words")


def pack_scales(scales: te.Tensor) -> te.Tensor:
    """TE of :func:`nvfp4_tvm.layout.pack_scales`."""
    N, groups = (int(extent) for extent in scales.shape)

    def word(t: tirx.Expr, c: tirx.Expr, lane: tirx.Expr) -> tirx.Expr:
        packed = u32(0)
        for byte in range(4):
            n, group = layout.scale_origin(t, c, lane, byte)
            value = scales[n, group].astype("uint32") << u32(8 * byte)
            packed = packed | tirx.if_then_else(tirx.all(n < N, group < groups), value, u32(0))
        return packed

    return te.compute(layout.scales_shape(N, groups * layout.GROUP_SIZE), word, name="block_scales")


def pack_global_scale(global_scale: te.Tensor, N: int) -> te.Tensor:
    """TE of :func:`nvfp4_tvm.layout.pack_global_scale`."""
    zero = tirx.const(0, "float32")
    per_row = global_scale.ndim == 1 and int(global_scale.shape[0]) == N and N > 1

    def row(n: tirx.Expr) -> tirx.Expr:
        value = global_scale[n] if per_row else global_scale() if global_scale.ndim == 0 else global_scale[0]
        return tirx.if_then_else(n < N, value, zero)

    return te.compute(layout.global_scale_shape(N), row, name="row_scales")


def repack(N: int, K: int, global_scale_shape: tuple[int, ...] = (1,)) -> tirx.PrimFunc:
    """Return the repack PrimFunc ``f(codes, scales, global_scale, words, block_scales, row_scales)``."""
    codes = te.placeholder((N, K // 2), "uint8", name="codes")
    scales = te.placeholder((N, K // layout.GROUP_SIZE), "uint8", name="scales")
    global_scale = te.placeholder(global_scale_shape, "float32", name="global_scale")
    outputs = [pack_words(codes), pack_scales(scales), pack_global_scale(global_scale, N)]
    return te.create_prim_func([codes, scales, global_scale, *outputs])


def _legalize(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    N, K, _ = canonical_shape(NAME, *call.args)
    # Without its symbol: functions of several shapes live in one module.
    kernel = repack(N, K, static_shape(NAME, "global_scale", call.args[2].ty)).without_attr("global_symbol")
    return relax.call_tir(builder.add_func(kernel, "nvfp4_pack"), list(call.args), packed_types(N, K))


OP = register(NAME, "Pack an NVFP4 weight into fragX.", 3, _infer_type, _legalize)


def pack(codes: relax.Expr, scales: relax.Expr, global_scale: relax.Expr) -> relax.Call:
    """Pack a canonical NVFP4 weight; see the module for shapes and dtypes."""
    return call(OP, [codes, scales, global_scale])
