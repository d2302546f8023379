"""Tensor parallel: how the packed parameters of a layer follow the sharding of its weight.

MLC-LLM gives a weight ``[N, K]`` a ``ShardSingleDim``: along dimension 0 (columns of the product, N) in segments,
or along dimension 1 (K). Packed, N is whole tiles of 16 rows and K whole tiles of 128, so a shard must consist of
whole tiles: then shards of the packing are the packings of the shards. Shapes in MLC-LLM are those of one shard.
"""

from __future__ import annotations

from typing import Any

from nvfp4_tvm import layout
from nvfp4_tvm.errors import ShapeError

TILES = (layout.TILE_N, layout.TILE_K)


def copy_sharding(weight: Any, packed: dict[str, Any], name: str, shards: int, *, leading: int = 0) -> None:
    """Give the packed parameters of a layer what its weight's attributes say.

    Parameters
    ----------
    weight : nn.Parameter
        The unquantized weight, in the shape of one shard.
    packed : mapping of str to nn.Parameter
        ``words``, ``scales`` and ``global_scale``; changed.
    name : str
        The layer, for errors.
    shards : int
        Number of shards of the model.
    leading : int
        Dimensions before N that packing leaves as they are: 1 for the experts of a layer.

    Raises
    ------
    ShapeError
        If a shard would not consist of whole tiles; the message says which numbers of shards would work.
    """
    for parameter in packed.values():
        if "pipeline_stages" in weight.attrs:
            parameter.attrs["pipeline_stages"] = weight.attrs["pipeline_stages"]
    strategy = weight.attrs.get("shard_strategy")
    if strategy is None:
        return
    axis = strategy.dim - leading
    if axis < 0:  # whole experts
        for field, parameter in packed.items():
            parameter.attrs["shard_strategy"] = type(strategy)(
                name=f"{strategy.name}_{field}", dim=strategy.dim, segs=strategy.segs
            )
        return
    segments = [int(extent) for extent in strategy.segs or [weight.shape[strategy.dim]]]
    _check(segments, axis, name, shards)
    for field, parameter in packed.items():
        if field == "global_scale" and axis == 1:
            continue  # one a row, and every shard has all rows
        unit = 1 if field == "global_scale" else TILES[axis]
        parameter.attrs["shard_strategy"] = type(strategy)(
            name=f"{strategy.name}_{field}",
            dim=strategy.dim,
            segs=strategy.segs and [segment // unit for segment in segments],
        )


def _check(segments: list[int], axis: int, name: str, shards: int) -> None:
    tile = TILES[axis]
    if shards == 1 or all(segment % tile == 0 for segment in segments):
        return
    whole = [segment * shards for segment in segments]
    works = [n for n in (1, 2, 4, 8, 16, 32) if all(extent % (n * tile) == 0 for extent in whole) or n == 1]
    raise ShapeError(
        f"layer {name}: {'N' if axis == 0 else 'K'} of {' + '.join(map(str, whole))} does not split into "
        f"tensor_parallel_shards={shards} of whole tiles of {tile}; expected "
        f"tensor_parallel_shards of {', '.join(map(str, works))}"
    )
