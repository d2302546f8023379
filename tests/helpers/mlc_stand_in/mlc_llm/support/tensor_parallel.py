"""Sharding along one dimension, in segments that are sharded each."""

import dataclasses

import numpy as np


@dataclasses.dataclass
class ShardSingleDim:
    name: str
    dim: int
    segs: list | None = None

    def shard(self, array, shards):
        """What MLC-LLM's generated function computes: [shards, ...]."""
        lengths = [length * shards for length in self.segs or [array.shape[self.dim] // shards]]
        assert sum(lengths) == array.shape[self.dim]
        parts = np.split(array, np.cumsum(lengths)[:-1], axis=self.dim)
        split = [np.split(part, shards, axis=self.dim) for part in parts]
        return [np.concatenate(pieces, axis=self.dim) for pieces in zip(*split, strict=True)]
