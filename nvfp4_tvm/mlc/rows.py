"""Finding out which rows of a checkpoint's tensors a parameter of MLC-LLM is made of.

MLC-LLM describes a fused weight by the names of its parts and a NumPy function that puts them together. Packed
parts cannot pass through it, but row numbers can: given arrays of numbers instead of weights, the function shows
which rows it takes, in which order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


class _Numbers(np.ndarray):
    """An array that keeps its dtype: 16-bit floats would not hold the numbers of rows."""

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        result = super().__array_function__(func, types, args, kwargs)  # np.concatenate returns a base array
        return result.view(_Numbers) if isinstance(result, np.ndarray) else result

    def astype(self, *_args: Any, **_kwargs: Any) -> _Numbers:
        return self


def source_rows(function: Callable[..., np.ndarray], shapes: Sequence[tuple[int, ...]]) -> np.ndarray | None:
    """Return which rows a function of weights takes, None if it does anything else with them.

    Parameters
    ----------
    function : callable
        Takes an array of each of the shapes.
    shapes : sequence of tuple of int
        ``(..., K)``, of one K.

    Returns
    -------
    numpy.ndarray or None
        int64, the shape of the function's result without K; the rows of all parts are numbered one after the
        other.
    """
    # Two columns show whether columns stay where they are; a function that knows K needs all of them.
    for columns in dict.fromkeys((2, shapes[0][-1])):
        start, parts = 0, []
        for shape in shapes:
            count = int(np.prod(shape[:-1]))
            numbers = np.arange(start * columns, (start + count) * columns, dtype=np.int64)
            parts.append(numbers.reshape(*shape[:-1], columns).view(_Numbers))
            start += count
        try:
            result = np.asarray(function(*parts))
        except (ValueError, IndexError, TypeError):
            continue
        if result.dtype != np.int64 or result.ndim < 2 or result.shape[-1] != columns:
            continue
        rows = result[..., 0] // columns
        if not np.array_equal(result, rows[..., None] * columns + np.arange(columns)):
            continue
        rows = np.ascontiguousarray(rows)
        return rows if columns == shapes[0][-1] or _moves_whole_rows(function, shapes, rows) else None
    return None


def _moves_whole_rows(
    function: Callable[..., np.ndarray], shapes: Sequence[tuple[int, ...]], rows: np.ndarray
) -> bool:
    """Return whether a function that takes these rows of narrow arrays takes them whole, by random bytes."""
    rng = np.random.default_rng(0)
    parts = [np.frombuffer(rng.bytes(int(np.prod(shape))), np.uint8).reshape(shape) for shape in shapes]
    result = np.asarray(function(*(part.view(_Numbers) for part in parts)))
    if result.shape != (*rows.shape, shapes[0][-1]):
        return False
    flat, taken, start = result.reshape(rows.size, -1), rows.reshape(-1), 0
    for part in parts:  # part by part, without a copy of all
        part = part.reshape(-1, part.shape[-1])
        here = np.flatnonzero((taken >= start) & (taken < start + len(part)))
        if not np.array_equal(flat[here], part[taken[here] - start]):
            return False
        start += len(part)
    return True
