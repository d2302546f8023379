"""The search space of the wgmma GEMM that decodes weights in registers: a table of parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from nvfp4_tvm import layout
from nvfp4_tvm.arch import Arch
from nvfp4_tvm.schedules.base import MRange
from nvfp4_tvm.schedules.gemm_wgmma import GemmWgmma
from nvfp4_tvm.schedules.gemm_wgmma_choice import LOWEST_M, busiest_units, choices
from nvfp4_tvm.schedules.gemm_wgmma_config import W_BLOCK_BYTES, WGMMA_ROWS, WgmmaConfig
from nvfp4_tvm.schedules.model import Footprint, memory_us, usual_card
from nvfp4_tvm.schedules.space import Space

#: Both launches, prologue and epilogue, microseconds (H200, the smallest weights).
START = 5.5
#: Operations a microsecond of an SM with tiles of 256 tokens (H200: 2.89 ms for M = 4096 of 43008 x 5376), and
#: what a unit costs whatever its tokens: decoding and barriers.
_RATE, _UNIT = 5.2e6, 0.06


class WgmmaSpace(Space):
    """Tokens and weight rows of a tile, stages, blocks of the grid and of an SM."""

    name = "gemm_wgmma"
    config_type = WgmmaConfig
    decisions: ClassVar[Mapping[str, tuple[int, ...]]] = {
        "tokens": (16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256),
        "warpgroups": (1, 2, 3),
        "x_stages": (2, 3, 4, 5, 6),
        "w_stages": (2, 3, 4, 5),
        "blocks_per_sm": (1, 2, 3),
        "residents": (1, 2, 3, 4),
        "overhead": (3, 6, 12),
    }

    def rule(self, config: WgmmaConfig) -> GemmWgmma:
        """See `Space.rule`."""
        return GemmWgmma(config)

    def rows(self, arch: Arch) -> MRange | None:
        """See `Space.rows`."""
        return MRange(LOWEST_M) if arch.wgmma else None

    def default(self, N: int, K: int, M: MRange, arch: Arch) -> WgmmaConfig | None:
        """See `Space.default`: what serves the most rows of the range, unless the other wgmma GEMM does."""
        rows = M.low if M.high is None else M.high
        config = next((config for part, config in choices(N, K, arch) if rows in part), None)
        return config if isinstance(config, WgmmaConfig) else None

    def footprint(self, config: WgmmaConfig, M: int) -> Footprint:
        """See `Space.footprint`."""
        return Footprint(config.threads, config.registers, config.shared_bytes)

    def suits(self, config: WgmmaConfig, N: int, K: int, M: MRange) -> bool:
        """See `Space.suits`: padding of at most the range itself."""
        return M.high is None or config.tokens < 2 * max(M.high, 16)

    def time(self, config: WgmmaConfig, N: int, K: int, M: int, arch: Arch) -> float:
        """See `Space.time`."""
        card = usual_card(arch)
        operations = 2 * config.tokens * config.warpgroups * WGMMA_ROWS * layout.TILE_K
        unit = operations / _RATE + _UNIT * config.warpgroups
        busiest = busiest_units(N, K, M, config, card.sms) * config.blocks_per_sm * unit
        flight = config.residents * (config.w_stages - 1) * config.warps * W_BLOCK_BYTES
        return START + max(busiest, memory_us(N, K, M, card, 1.0, flight))
