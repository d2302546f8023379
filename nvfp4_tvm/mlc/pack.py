"""Packing the rows of NVFP4 and unquantized tensors into the parameters of one layer of MLC-LLM."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nvfp4_tvm import layout, packing
from nvfp4_tvm.checkpoint.base import NVFP4Tensor
from nvfp4_tvm.quantizing import quantize
from nvfp4_tvm.scaling import Arithmetic, global_scale_from_amax
from nvfp4_tvm.shared_amax import SharedAmax

#: Whose order of float32 operations weights are quantized in on the way: that of `nvfp4-tvm quantize`.
ARITHMETIC: Arithmetic = "compressed-tensors"


def quantize_parts(weights: dict[str, np.ndarray], shared: SharedAmax | None = None) -> list[NVFP4Tensor]:
    """Quantize the parts of one layer, as `nvfp4_tvm.quantize.quantize_checkpoint` quantizes them in a checkpoint.

    Parameters
    ----------
    weights : dict of str to numpy.ndarray
        By module of the checkpoint, ``[N, K]`` each.
    shared : SharedAmax, optional
        Decides over global scales. By default those of the weights given share one that are fused: q, k, v, and
        gate, up.

    Raises
    ------
    NVFP4Error
        If a weight cannot be quantized; the message names it.
    """
    shared = shared or SharedAmax({module: module for module in weights}, weights.__getitem__)
    tensors = []
    for module, weight in weights.items():
        decisive = shared(module)
        stored = global_scale_from_amax(decisive, arithmetic=ARITHMETIC, name=module)
        codes, scales = quantize(np.ascontiguousarray(weight), decisive, arithmetic=ARITHMETIC, name=module)
        tensors.append(NVFP4Tensor(module, codes, scales, np.float32(1) / stored))
    return tensors


def pack_rows(tensors: Sequence[NVFP4Tensor], rows: np.ndarray) -> list[np.ndarray]:
    """Pack rows of tensors.

    Parameters
    ----------
    tensors : sequence of NVFP4Tensor
        Of one K.
    rows : numpy.ndarray
        int64 ``[N]``, or ``[E, N]`` for the experts of a layer: the rows of the tensors, numbered one after the
        other.

    Returns
    -------
    list of numpy.ndarray
        ``words``, ``scales`` and ``global_scale``, with E in front if ``rows`` has it.
    """
    if rows.ndim == 2:
        return _pack_experts(tensors, rows)
    codes = [tensor.codes for tensor in tensors]
    scales = [tensor.scales for tensor in tensors]
    total = sum(part.shape[0] for part in codes)
    order: np.ndarray | None = rows
    if np.array_equal(rows, np.arange(total)):
        order = None
    scale_rows: list = [tensor.global_scale for tensor in tensors]
    if order is not None and not np.array_equal(np.sort(rows), np.arange(total)):
        spread = np.concatenate(
            [np.full(tensor.shape[0], tensor.global_scale, np.float32) for tensor in tensors]
        )
        codes, scales = [np.concatenate(codes)[rows]], [np.concatenate(scales)[rows]]
        scale_rows, order = [spread[rows]], None
    weight = packing.pack(codes, scales, scale_rows, order=order)
    return [weight.words, weight.scales, weight.global_scale]


def _pack_experts(tensors: Sequence[NVFP4Tensor], rows: np.ndarray) -> list[np.ndarray]:
    experts, N = rows.shape
    if N % layout.TILE_N == 0:  # whole tiles: one after the other is the packing of all rows
        return [
            array.reshape(experts, array.shape[0] // experts, *array.shape[1:])
            for array in pack_rows(tensors, rows.reshape(-1))
        ]
    each = [pack_rows(tensors, rows[expert]) for expert in range(experts)]
    return [np.stack(arrays) for arrays in zip(*each, strict=True)]
