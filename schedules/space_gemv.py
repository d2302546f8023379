"""The search space of the GEMV family: a table of parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

from nvfp4_tvm import layout
from nvfp4_tvm.arch import Arch
from nvfp4_tvm.schedules.base import MRange
from nvfp4_tvm.schedules.gemv import MAX_M, Gemv, choose, registers
from nvfp4_tvm.schedules.gemv_kernel import TOKENS, GemvConfig
from nvfp4_tvm.schedules.model import Footprint, busy_share, memory_us, usual_card
from nvfp4_tvm.schedules.space import Space

#: Launch, first bytes and the sum over warps, microseconds (H200, the smallest weights).
START = 1.4
#: Bytes of 128 k of a tile.
_PIECE = layout.TILE_N * layout.TILE_K * 9 // 16


class GemvSpace(Space):
    """Warps of a block, tiles, depth of the ring of weights in registers, length of the loop's body."""

    name = "gemv"
    config_type = GemvConfig
    decisions: ClassVar[Mapping[str, tuple[int, ...]]] = {
        "KS": (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 15, 16, 20, 21, 24),
        "NT": (1, 2, 3, 4, 5),
        "D": (1, 2, 3, 4),
        "unroll": tuple(range(1, 49)),
        "resident": (0,),
        "pdl": (False, True),
    }

    def values(self, name: str, chosen: Mapping[str, int]) -> tuple[int, ...]:
        """See `Space.values`: two lengths of the body, what the instruction cache holds and a short one."""
        if name != "unroll":
            return super().values(name, chosen)
        D = chosen["D"]
        long = max(D, 44 // chosen["NT"] // D * D)
        return tuple({long: None, max(D, 12 // D * D): None})

    def configs(self, arch: Arch) -> Iterator[GemvConfig]:
        """See `Space.configs`: programmatic dependent launch wherever the architecture has it."""
        return (config for config in super().configs(arch) if config.pdl == arch.pdl)

    def rule(self, config: GemvConfig) -> Gemv:
        """See `Space.rule`."""
        return Gemv(config)

    def rows(self, arch: Arch) -> MRange:
        """See `Space.rows`."""
        return MRange(1, MAX_M)

    def served(self, rows: int, arch: Arch) -> MRange:
        """See `Space.served`: as many eights of tokens."""
        high = -(-rows // TOKENS) * TOKENS
        return MRange(high - TOKENS + 1, high)

    def default(self, N: int, K: int, M: MRange, arch: Arch) -> GemvConfig | None:
        """See `Space.default`."""
        return None if M.high is None or M.high > MAX_M else choose(N, K, M.high, arch)

    def footprint(self, config: GemvConfig, M: int) -> Footprint:
        """See `Space.footprint`; registers are the family's estimate."""
        return Footprint(config.threads, registers(-(-M // TOKENS), config.NT, config.D), config.shared_bytes)

    def suits(self, config: GemvConfig, N: int, K: int, M: MRange) -> bool:
        """See `Space.suits`: no more warps than 128-blocks of k."""
        return config.KS <= layout.tiles(N, K)[1]

    def time(self, config: GemvConfig, N: int, K: int, M: int, arch: Arch) -> float:
        """See `Space.time`."""
        card = usual_card(arch)
        resident = self.resident(config, M, arch)
        blocks = config.blocks(N)
        at_once = min(resident, -(-blocks // card.sms))
        # Warps with a step less than others wait for them
        even = layout.tiles(N, K)[1] / (config.KS * config.steps(K))
        flight = at_once * config.KS * config.NT * min(config.D, config.steps(K)) * _PIECE
        busy = busy_share(blocks, resident, card.sms) * even
        # A block loads its activations for NT tiles; 16 tokens take more loads than a tile's weights
        reuse = 1.0 if M <= TOKENS else min(1.0, (config.NT + 1) / 4) ** 0.4
        return START + memory_us(N, K, M, card, busy * reuse, flight)
