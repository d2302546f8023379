"""How many tiles of rows, none with rows of two experts, a number of rows makes: the estimate that choices go by.

Routing is data. Choices assume that each row picks its expert uniformly at random: the rows of an expert are then
Poisson distributed around ``M / E``. Kernels are right for any routing.
"""

from __future__ import annotations

from functools import cache

import numpy as np


@cache
def expected_tiles(experts: int, M: int, height: int) -> float:
    """Return the mean number of tiles of ``height`` rows that M rows make."""
    mean = M / experts
    # Ten standard deviations: what is beyond has a probability below 1e-20
    rows = np.arange(1, int(mean + 10 * mean**0.5) + 10)
    logarithms = rows * np.log(mean) - mean - np.cumsum(np.log(rows))
    return float(experts * (np.exp(logarithms) * -(-rows // height)).sum())


def rows_for(experts: int, height: int) -> int:
    """Return up to how many rows an expert's rarely exceed a tile of ``height``: two standard deviations below."""
    # r + 2 sqrt(r) = height
    mean = ((height + 1) ** 0.5 - 1) ** 2
    return int(experts * mean)
