"""The search space of the cluster GEMM: a table of parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from nvfp4_tvm import layout
from nvfp4_tvm.arch import Arch
from nvfp4_tvm.schedules.base import MRange
from nvfp4_tvm.schedules.gemm_cluster import GemmCluster
from nvfp4_tvm.schedules.gemm_cluster_choice import choices, cluster_time
from nvfp4_tvm.schedules.gemm_cluster_config import MAX_CLUSTER, ClusterConfig
from nvfp4_tvm.schedules.gemm_wgmma_choice import LOWEST_M
from nvfp4_tvm.schedules.model import Footprint
from nvfp4_tvm.schedules.space import Space

_TOKENS = (32, 48, 64, 96, 128)


class ClusterSpace(Space):
    """Tokens and weight rows of a tile, blocks of a cluster, stages; one block an SM, which its model is of."""

    name = "gemm_cluster"
    config_type = ClusterConfig
    decisions: ClassVar[Mapping[str, tuple[int, ...]]] = {
        "tokens": _TOKENS,
        "warpgroups": (1, 2, 3),
        "warp_tiles": (1, 2),
        "cluster": tuple(range(1, MAX_CLUSTER + 1)),
        "x_stages": (3, 4, 5, 6),
        "w_stages": (2, 3, 4),
        "residents": (1,),
    }

    def rule(self, config: ClusterConfig) -> GemmCluster:
        """See `Space.rule`."""
        return GemmCluster(config)

    def rows(self, arch: Arch) -> MRange | None:
        """See `Space.rows`: one tile of tokens; with two, weights are decoded twice."""
        return MRange(LOWEST_M, max(_TOKENS)) if arch.wgmma else None

    def default(self, N: int, K: int, M: MRange, arch: Arch) -> ClusterConfig | None:
        """See `Space.default`: what serves the most rows of the range, unless they are left to the wgmma GEMM."""
        if not arch.wgmma or M.high is None:
            return None
        return next((config for part, config in choices(N, K, arch) if M.high in part), None)

    def footprint(self, config: ClusterConfig, M: int) -> Footprint:
        """See `Space.footprint`."""
        return Footprint(config.threads, config.registers, config.shared_bytes)

    def suits(self, config: ClusterConfig, N: int, K: int, M: MRange) -> bool:
        """See `Space.suits`: one tile of tokens with padding of at most the range itself, k for each block."""
        if M.high is None:
            return False
        return M.high <= config.tokens < 2 * max(M.high, 17) and config.cluster <= layout.tiles(N, K)[1]

    def time(self, config: ClusterConfig, N: int, K: int, M: int, arch: Arch) -> float:
        """See `Space.time`: the family's own model."""
        return cluster_time(config, N, K, M)
