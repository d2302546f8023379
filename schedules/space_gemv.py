"""The search space of the GEMV family: a table of parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

from nvfp4_tvm import layout
from nvfp4_tvm.arch import MAX_THREADS_PER_BLOCK, WARP_SIZE, Arch, get_arch
from nvfp4_tvm.schedules.base import MRange
from nvfp4_tvm.schedules.gemv import MAX_M, Gemv, choose, registers, score
from nvfp4_tvm.schedules.gemv_kernel import GemvConfig
from nvfp4_tvm.schedules.intrin.mma_sync import TOKENS
from nvfp4_tvm.schedules.model import (
    COPY_SHARE,
    REFERENCE,
    Footprint,
    clock_ratio,
    floor_us,
    sm_bandwidth,
    usual_card,
)
from nvfp4_tvm.schedules.space import Space

#: Launch, first bytes and the sum over warps, microseconds (H200, the smallest weights).
START = 1.4
#: From the family's score to a share of a copy's speed. With it the times of the 90 problems of
#: ``benchmarks/results/peer_gemm_h200.json`` that this family serves come out right in the geometric mean; the
#: standard deviation of their logarithms is 0.23.
_SHARE = 1.25
#: The estimate of registers may be that many above what the compiler is given: 23 for a measured configuration of
#: 6144x4096, which compiles without spills.
_ESTIMATE = 24


class GemvSpace(Space):
    """Warps of a block, tiles, depth of the ring of weights in registers, length of the loop's body."""

    name = "gemv"
    config_type = GemvConfig
    decisions: ClassVar[Mapping[str, tuple[int, ...]]] = {
        "KS": tuple(range(1, MAX_THREADS_PER_BLOCK // WARP_SIZE + 1)),
        "NT": (1, 2, 3, 4),
        "D": (1, 2, 3, 4),
        "unroll": tuple(range(1, 49)),
        "resident": (0, 4),
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
        """See `Space.default`: what serves the most rows of the range, unless they are left to the GEMMs."""
        own = next((own for own in Gemv().ranges(N, K, arch) if M.high is not None and M.high in own), None)
        return None if own is None or own.high is None else choose(N, K, own.high, arch)

    def footprint(self, config: GemvConfig, M: int) -> Footprint:
        """See `Space.footprint`; registers are the family's estimate, and no more than the compiler is given."""
        estimate = registers(-(-M // TOKENS), config.NT, config.D)
        per_sm = get_arch("sm_80").registers_per_sm  # as on every architecture of the table
        given = per_sm // (max(config.resident, 1) * config.threads) // 8 * 8
        if estimate <= given + _ESTIMATE:
            estimate = min(estimate, given)
        return Footprint(config.threads, estimate, config.shared_bytes)

    def suits(self, config: GemvConfig, N: int, K: int, M: MRange) -> bool:
        """See `Space.suits`: no more warps than 128-blocks of k, and no more blocks than an SM has threads for."""
        fit = get_arch("sm_80").max_threads_per_sm // config.threads
        return config.KS <= layout.tiles(N, K)[1] and config.resident <= fit

    def time(self, config: GemvConfig, N: int, K: int, M: int, arch: Arch) -> float:
        """See `Space.time`."""
        card = usual_card(arch)
        resident = max(1, self.resident(config, min(M, MAX_M), arch))
        share = _SHARE * score(config, N, K, -(-M // TOKENS), resident, card.sms)
        # What keeps the family below a copy's speed is the work of the SMs, and grows with their clock
        of_sms = share * card.sms * sm_bandwidth(REFERENCE) / clock_ratio(card)
        return START + floor_us(N, K, M, min(of_sms, COPY_SHARE * card.bandwidth))
