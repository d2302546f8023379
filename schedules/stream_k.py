"""Stream-K: how a fixed grid shares the work of an output whose tiles do not divide by it.

Work is counted in units, one 128-block of k of one tile, a tile's units in a row. Where whole tiles would
leave many blocks of the grid idle in the last round, the last one to two rounds of tiles are cut into equal
runs of units, one for each block; the rest goes round by round, whole tiles. A tile that is cut is finished
by the block that has its end, which adds the sums of the blocks before it in ascending order: the result does
not depend on timing. (Osama et al., "Stream-K: Work-centric Parallel Decomposition for Dense Matrix-Matrix
Multiplication on the GPU".)

A block takes its run from the back: first the beginning of a tile that a later block finishes, last the end
of a tile that earlier blocks began. It therefore only ever waits for blocks with a lower index and for what
those do first, so that no block waits for one that has not started.

Every function takes Python integers or TIR expressions; ``select(condition, a, b)`` chooses between
expressions. All quantities are non-negative, at most a few times ``grid * blocks``: they fit 32 bits.
"""

from __future__ import annotations

from typing import Any, Protocol


class Select(Protocol):
    """``a`` if the condition holds, else ``b``."""

    def __call__(self, condition: Any, a: Any, b: Any) -> Any:
        """Choose."""


def select_int(condition: bool, a: int, b: int) -> int:
    """`Select` for Python integers."""
    return a if condition else b


def sharing_blocks(tiles: Any, grid: int, select: Select) -> Any:
    """Return how many blocks of the grid share the tiles that are cut.

    If there are at least two blocks a tile, a whole number a tile is best, so that no block works on two tiles;
    unless that leaves more than an eighth of the grid idle.
    """
    each = grid // tiles
    return select(each * tiles * 8 >= grid * 7, select(each >= 2, each * tiles, grid), grid)


def cut_tiles(tiles: Any, sharing: Any, blocks: int, grid: int, overhead: int, select: Select) -> Any:
    """Return how many tiles, the first ones, are cut.

    Parameters
    ----------
    tiles : int or Expr
        Tiles of the output, at least 1.
    sharing : int or Expr
        `sharing_blocks` of them.
    blocks : int
        Units of a tile.
    grid : int
        Blocks of the launch.
    overhead : int
        What handing sums over costs, in units.
    """
    rounds = tiles // grid
    rest = tiles % grid
    saved = blocks - (rest * blocks + sharing - 1) // sharing
    return select(rest * saved > rest * overhead, rest + select(rounds > 0, grid, 0), 0)


def first_unit(block: Any, units: Any, sharing: Any, select: Select) -> Any:
    """Return the first unit of a block's run; the run ends where the next block's begins."""
    return select(block < sharing, block * units // sharing, units)


def whole_tiles(tiles: Any, cut: Any, block: Any, grid: int) -> Any:
    """Return how many whole tiles a block takes: ``cut + block``, ``cut + block + grid`` and so on."""
    return (tiles - cut - block + (grid - 1)) // grid


def first_block(tile: Any, blocks: int, units: Any, sharing: Any) -> Any:
    """Return the block that begins a cut tile."""
    return ((tile * blocks + 1) * sharing - 1) // units
