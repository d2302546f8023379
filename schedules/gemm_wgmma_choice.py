"""Which configuration of the wgmma GEMMs serves which M: a table up to 128 rows, a model of the rounds beyond.

Measured on an H200 with cold weights. Up to 128 rows one tile holds all of them, and what counts is how many
weights are in flight and how many blocks share a tile's k. Beyond, the time is the units of the busiest block
(:mod:`.stream_k`) times the time of a unit, which grows with the tile's tokens, little tiles being less efficient.

Wide tiles belong to the SS kernel, where a unit of 256 tokens takes 0.85 of the time it takes RS; its decoder
needs about the same time for every tile, so that below 192 tokens RS is faster.
"""

from __future__ import annotations

from nvfp4_tvm import layout
from nvfp4_tvm.arch import Arch
from nvfp4_tvm.schedules import stream_k
from nvfp4_tvm.schedules.base import MRange
from nvfp4_tvm.schedules.gemm_wgmma_config import WARPGROUP_WARPS, WgmmaConfig
from nvfp4_tvm.schedules.gemm_wgmma_ss_config import SharedWgmmaConfig

AnyConfig = WgmmaConfig | SharedWgmmaConfig

#: Below, the GEMV family is faster.
LOWEST_M = 17
#: Weights with fewer rows have too few tiles for all multiprocessors: narrower tiles, more blocks a tile.
_NARROW_N = 8192
#: Weights with fewer elements are read so fast that starting and ending blocks counts: fewer blocks.
_SMALL_WEIGHT = 32 << 20

#: Configurations by tokens.
_WIDE = {
    32: WgmmaConfig(32, 2, 4, 4, 2),
    64: WgmmaConfig(64, 2, 4, 4, 2),
    96: WgmmaConfig(96, 3, 4, 3, 1),
    128: WgmmaConfig(128, 3, 4, 3, 1),
    160: WgmmaConfig(160, 2, 4, 4, 1),
}
_NARROW = {
    32: WgmmaConfig(32, 1, 4, 4, 3),
    64: WgmmaConfig(64, 2, 4, 4, 1),
    96: WgmmaConfig(96, 2, 4, 4, 1),
    128: WgmmaConfig(128, 2, 5, 4, 1),
    160: WgmmaConfig(160, 2, 4, 4, 1),
}
_NARROW_AND_SMALL = _NARROW | {32: WgmmaConfig(32, 1, 4, 4, 2, residents=3), 64: WgmmaConfig(64, 1, 3, 4, 1)}
_SHARED = (SharedWgmmaConfig(192, 4, 3, 2), SharedWgmmaConfig(208, 4, 2, 1), SharedWgmmaConfig(256, 4, 2, 1))
#: One tile a range of M, up to the table's end.
_TABLE_TOKENS = (32, 64, 96, 128)
#: Microseconds of a unit of 512 times 64 weight rows by a token, by tokens of a tile; of starting and ending; of a
#: byte of activations that is read and written by the launch that rearranges them. Fitted to ten shapes and M
#: up to 1024, within 6 % (root mean square).
_UNIT_US, _START_US, _REARRANGED_BYTE_US = {96: 1.71, 128: 1.63, 160: 1.55}, 5.3, 0.15e-6
_SHARED_UNIT_US, _SHARED_START_US = {192: 1.55, 208: 1.50, 256: 1.42}, 3.2
#: The model chooses for steps of so many rows; above its end padding is small and the largest tile is best.
_STEP, _MODEL_END = 16, 2048


def configurations(N: int, K: int) -> dict[int, WgmmaConfig]:
    """Return the configurations of the RS kernel for a weight [N, K], by tokens of the tile."""
    if N >= _NARROW_N:
        return _WIDE
    return _NARROW_AND_SMALL if N * K < _SMALL_WEIGHT else _NARROW


def busiest_units(N: int, K: int, M: int, config: AnyConfig, sms: int) -> int:
    """Return the units of work of the busiest block, handing over of sums included."""
    n_tiles, blocks = layout.tiles(N, K)
    tiles = -(-M // config.tokens) * -(-n_tiles // config.warps)
    grid = config.grid(sms)
    sharing = stream_k.sharing_blocks(tiles, grid, stream_k.select_int)
    cut = stream_k.cut_tiles(tiles, sharing, blocks, grid, config.overhead, stream_k.select_int)
    whole = stream_k.whole_tiles(tiles, cut, 0, grid) * blocks
    return whole + (-(-cut * blocks // sharing) + config.overhead if cut else 0)


def modeled_time(N: int, K: int, M: int, config: AnyConfig, sms: int) -> float:
    """Return the model's microseconds; for tiles of 96 tokens and more."""
    work = busiest_units(N, K, M, config, sms) * config.warps * config.tokens / (WARPGROUP_WARPS * 512)
    if isinstance(config, SharedWgmmaConfig):
        return work * _SHARED_UNIT_US[config.tokens] + _SHARED_START_US
    return work * _UNIT_US[config.tokens] + _START_US + 4 * M * K * _REARRANGED_BYTE_US


def choices(N: int, K: int, arch: Arch) -> list[tuple[MRange, AnyConfig]]:
    """Return the ranges of M that have one configuration each, in order, from `LOWEST_M` on without gaps."""
    sms = max(card.sms for card in arch.cards)
    by_tokens = configurations(N, K)
    modeled: tuple[AnyConfig, ...] = (*(by_tokens[tokens] for tokens in _UNIT_US), *_SHARED)
    found: list[tuple[MRange, AnyConfig]] = []
    low = LOWEST_M

    def add(high: int | None, config: AnyConfig) -> None:
        nonlocal low
        start = low
        if found and found[-1][1] == config:
            start = found.pop()[0].low
        found.append((MRange(start, high), config))
        low = 0 if high is None else high + 1

    for tokens in _TABLE_TOKENS:
        add(tokens, by_tokens[tokens])
    for high in range(_TABLE_TOKENS[-1] + _STEP, _MODEL_END + 1, _STEP):
        add(high, min(modeled, key=lambda config: modeled_time(N, K, high, config, sms)))
    add(None, _SHARED[-1])
    return found
