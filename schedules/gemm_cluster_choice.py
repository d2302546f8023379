"""Which M the cluster GEMM serves, with which configuration: a model of its time beside that of the wgmma GEMM.

Both times are a start, which holds the chain of dependent launches and the last sums, and the 128-blocks of
the busiest block times the time of one. Constants were measured on an H200 with cold weights, and the model is
within a twentieth of what was. The cluster GEMM starts earlier, having one launch, and reads activations for more
rows at a time; the wgmma GEMM (:mod:`.gemm_wgmma_choice`) uses every multiprocessor, which clusters cannot. Hence
the former for weights that fill the GPU about once.
"""

from __future__ import annotations

from dataclasses import replace

from nvfp4_tvm import layout
from nvfp4_tvm.arch import Arch
from nvfp4_tvm.schedules.base import MRange
from nvfp4_tvm.schedules.gemm_cluster_config import MAX_CLUSTER, ClusterConfig
from nvfp4_tvm.schedules.gemm_wgmma_choice import LOWEST_M, AnyConfig, busiest_units, modeled_time
from nvfp4_tvm.schedules.gemm_wgmma_choice import choices as wgmma_choices
from nvfp4_tvm.schedules.gemm_wgmma_ss_config import SharedWgmmaConfig

#: Tiles: what fits the shared memory of an SM, by tokens, of 256 and of 192 rows.
_TILES = tuple(
    ClusterConfig(tokens, warpgroups, warp_tiles, 1, x_stages, w_stages)
    for tokens, x_stages, w_stages in ((32, 6, 4), (48, 6, 4), (64, 6, 4), (96, 5, 3), (128, 4, 3))
    for warpgroups, warp_tiles in ((2, 2), (3, 1))
)
#: Clusters of 1, 2, .. 8 blocks, a block an SM, that an H200 runs at the same time (cuOccupancyMaxActiveClusters):
#: a cluster lies in one GPC, and these have different numbers of SMs.
_AT_ONCE = (132, 66, 39, 30, 22, 17, 15, 15)
#: Microseconds: the start, for no tokens, per token, and per block of a cluster beyond four.
_START, _START_TOKEN, _START_BLOCK = 1.9, 0.034, 0.45
#: Microseconds of a 128-block of 256 rows, for no tokens and per token. Fewer rows take more than their share.
_UNIT, _UNIT_TOKEN, _UNIT_ROWS, _UNIT_EXPONENT = 0.62, 0.0066, 256, 0.85
#: Its factor on an idle GPU, and what is added on a full one.
_UNLOADED, _LOAD = 0.9, 0.2
#: The family is chosen if it should take less than this share of the other's time: the models are that exact.
_MARGIN = 0.95
#: The wgmma GEMM: microseconds of its start, and of a unit of 128 rows for no tokens and per token. Several blocks
#: on an SM, or wider ones, are a little faster than the product of their rows says.
_WGMMA_START, _WGMMA_UNIT, _WGMMA_TOKEN, _WGMMA_EXPONENT = 5.0, 0.25, 0.0047, 0.85


def _cluster_time(config: ClusterConfig, N: int, K: int, M: int) -> float:
    n_tiles, blocks = layout.tiles(N, K)
    tiles = -(-n_tiles // config.tiles) * -(-M // config.tokens)
    load = min(1.0, tiles * config.cluster / _AT_ONCE[0])
    rows = (config.rows / _UNIT_ROWS) ** _UNIT_EXPONENT
    unit = (_UNIT + _UNIT_TOKEN * config.tokens) * rows * (_UNLOADED + _LOAD * load)
    start = _START + _START_TOKEN * config.tokens + _START_BLOCK * max(0, config.cluster - 4)
    return -(-tiles // _AT_ONCE[config.cluster - 1]) * (start + -(-blocks // config.cluster) * unit)


def _wgmma_time(config: AnyConfig, N: int, K: int, M: int, sms: int) -> float:
    if isinstance(config, SharedWgmmaConfig):
        return modeled_time(N, K, M, config, sms)
    units = busiest_units(N, K, M, config, sms)
    width = (config.warpgroups / 2 * config.blocks_per_sm) ** _WGMMA_EXPONENT
    return _WGMMA_START + units * width * (_WGMMA_UNIT + _WGMMA_TOKEN * config.tokens)


def choices(N: int, K: int, arch: Arch) -> list[tuple[MRange, ClusterConfig]]:
    """Return the ranges of M that the family should serve, with a configuration each, in order."""
    sms = max(card.sms for card in arch.cards)
    others = wgmma_choices(N, K, arch)
    found: list[tuple[MRange, ClusterConfig]] = []
    low = LOWEST_M
    # With two tiles of tokens weights would be decoded twice: from there on the wgmma GEMM is no slower
    for high in sorted({tile.tokens for tile in _TILES}):
        options = [
            replace(tile, cluster=cluster)
            for tile in _TILES
            if tile.tokens >= high
            for cluster in range(1, MAX_CLUSTER + 1)
        ]
        time, config = min(((_cluster_time(c, N, K, high), c) for c in options), key=lambda option: option[0])
        (other,) = (config for m_range, config in others if high in m_range)
        if time < _MARGIN * _wgmma_time(other, N, K, high, sms):
            if found and found[-1][1] == config and found[-1][0].high == low - 1:
                low = found.pop()[0].low
            found.append((MRange(low, high), config))
        low = high + 1
    return found
