"""Packing canonical weights on the CPU, from wherever their rows lie, by one compiled kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import tvm

from nvfp4_tvm import layout
from nvfp4_tvm.buffers import Buffers
from nvfp4_tvm.errors import ShapeError
from nvfp4_tvm.runtime.threads import configure_threads
from nvfp4_tvm.schedules.repack import KERNEL, cpu_repack
from nvfp4_tvm.target import resolve_target


@cache
def repack_function() -> Callable[..., Any]:
    """Compile :func:`~nvfp4_tvm.schedules.repack.cpu_repack` for this processor; half a second, once a process."""
    configure_threads()
    return tvm.compile(cpu_repack(), target=resolve_target("llvm").target)[KERNEL]


def pack(
    codes: Sequence[np.ndarray],
    scales: Sequence[np.ndarray],
    global_scale: Sequence[np.ndarray | np.floating | float],
    *,
    order: np.ndarray | None = None,
    buffers: Buffers | None = None,
) -> layout.PackedWeight:
    """Pack a weight of one or more parts, one after the other along N, without copying them first.

    Parameters
    ----------
    codes, scales : sequence of numpy.ndarray
        uint8 [N, K/2] and [N, K/16] of each part, contiguous, of one K.
    global_scale : sequence of numpy.ndarray or float
        Of each part, one value or one a row.
    order : numpy.ndarray, optional
        Row of the parts that becomes each packed row.
    buffers : Buffers, optional
        Where to put the result, which is then valid until the next weight.

    Returns
    -------
    layout.PackedWeight
        Bit for bit what `layout.pack` makes of the concatenated parts.

    Raises
    ------
    ShapeError
        If dtypes or shapes do not fit together.
    """
    K = 2 * codes[0].shape[1]
    for part, part_scales in zip(codes, scales, strict=True):
        n = part.shape[0]
        for what, array, columns in (
            ("codes", part, K // 2),
            ("scales", part_scales, K // layout.GROUP_SIZE),
        ):
            if array.dtype != np.uint8 or array.shape != (n, columns) or not array.flags.c_contiguous:
                raise ShapeError(
                    f"{what}: found {array.dtype}{list(array.shape)}, expected contiguous uint8[{n}, {columns}] "
                    f"for a weight [{n}, {K}]"
                )
    N = sum(part.shape[0] for part in codes)
    layout.check_weight(N, K, "codes")
    if order is not None and (order.shape != (N,) or not np.array_equal(np.sort(order), np.arange(N))):
        raise ShapeError(
            f"order: found {order.dtype}{list(order.shape)}, expected the rows 0..{N - 1} in some order"
        )
    rows = [
        np.broadcast_to(np.asarray(scale, np.float32).reshape(-1), part.shape[0])
        for scale, part in zip(global_scale, codes, strict=True)
    ]
    all_rows = np.concatenate(rows)
    padding = np.zeros(K // 2, np.uint8)
    out = buffers or Buffers()
    words = out.array("words", layout.words_shape(N, K), np.uint32)
    block_scales = out.array("scales", layout.scales_shape(N, K), np.uint32)
    repack_function()(
        _addresses(codes, order, padding),
        _addresses(scales, order, padding),
        K,
        words.reshape(-1),
        block_scales.reshape(-1),
    )
    return layout.PackedWeight(
        N, K, words, block_scales, layout.pack_global_scale(all_rows if order is None else all_rows[order], N)
    )


def _addresses(parts: Sequence[np.ndarray], order: np.ndarray | None, padding: np.ndarray) -> np.ndarray:
    """Return where each packed row lies; those of the padding are all at ``padding``."""
    rows = np.concatenate(
        [
            np.uint64(part.ctypes.data) + np.arange(part.shape[0], dtype=np.uint64) * np.uint64(part.shape[1])
            for part in parts
        ]
    )
    addresses = np.full(layout.global_scale_shape(rows.size), padding.ctypes.data, np.uint64)
    addresses[: rows.size] = rows if order is None else rows[order]
    return addresses
