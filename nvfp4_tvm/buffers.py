"""Memory that is used again from layer to layer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import DTypeLike

#: Bytes: a cache line, which stores past the caches write whole.
ALIGNMENT = 64


class Buffers:
    """Arrays of one weight's packed form, kept from weight to weight so that their pages are touched once."""

    def __init__(self) -> None:
        self._bytes: dict[str, np.ndarray] = {}

    def array(self, name: str, shape: Sequence[int], dtype: DTypeLike) -> np.ndarray:
        """Return an array aligned to `ALIGNMENT`; what the name had before is overwritten."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        kept = self._bytes.get(name)
        if kept is None or kept.size < size:
            raw = np.empty(size + ALIGNMENT, np.uint8)
            kept = self._bytes[name] = raw[-raw.ctypes.data % ALIGNMENT :][: max(size, 1)]
        return kept[:size].view(dtype).reshape(shape)
