"""The search space of the wgmma GEMM that decodes weights into shared memory: a table of parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from nvfp4_tvm.arch import Arch, get_arch
from nvfp4_tvm.schedules.base import MRange
from nvfp4_tvm.schedules.gemm_wgmma import GemmWgmma
from nvfp4_tvm.schedules.gemm_wgmma_choice import LOWEST_M, choices, modeled_time
from nvfp4_tvm.schedules.gemm_wgmma_ss_config import MIN_X_STAGES, SharedWgmmaConfig
from nvfp4_tvm.schedules.model import Footprint, usual_card
from nvfp4_tvm.schedules.space import Space


class SharedWgmmaSpace(Space):
    """Tokens of a tile, stages, warpgroups that decode, what handing sums over is taken to cost."""

    name = "gemm_wgmma_ss"
    config_type = SharedWgmmaConfig
    decisions: ClassVar[Mapping[str, tuple[int, ...]]] = {
        "tokens": (128, 144, 160, 176, 192, 208, 224, 240, 256),
        "x_stages": tuple(range(MIN_X_STAGES, 7)),
        "w_stages": (2, 3, 4),
        "decoders": (1, 2),
        "overhead": (2, 4, 8),
    }

    def rule(self, config: SharedWgmmaConfig) -> GemmWgmma:
        """See `Space.rule`."""
        return GemmWgmma(config)

    def rows(self, arch: Arch) -> MRange | None:
        """See `Space.rows`."""
        return MRange(LOWEST_M) if arch.wgmma else None

    def default(self, N: int, K: int, M: MRange, arch: Arch) -> SharedWgmmaConfig | None:
        """See `Space.default`: what serves the most rows of the range, unless the other wgmma GEMM does."""
        rows = M.low if M.high is None else M.high
        config = next((config for part, config in choices(N, K, arch) if rows in part), None)
        return config if isinstance(config, SharedWgmmaConfig) else None

    def footprint(self, config: SharedWgmmaConfig, M: int) -> Footprint:
        """See `Space.footprint`: one block has an SM's registers."""
        share = get_arch("sm_90").registers_per_sm // config.threads // 8 * 8
        return Footprint(config.threads, share, config.shared_bytes)

    def suits(self, config: SharedWgmmaConfig, N: int, K: int, M: MRange) -> bool:
        """See `Space.suits`: padding of at most the range itself."""
        return M.high is None or config.tokens < 2 * M.high

    def time(self, config: SharedWgmmaConfig, N: int, K: int, M: int, arch: Arch) -> float:
        """See `Space.time`: the family's own model."""
        return modeled_time(N, K, M, config, usual_card(arch).sms)
