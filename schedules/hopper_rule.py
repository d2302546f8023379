"""What the wgmma families' rules have in common: where they apply, and one configuration for each range of M."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Generic, TypeVar

from tvm.target import Target

from nvfp4_tvm.arch import ARCHS, Arch
from nvfp4_tvm.schedules.base import KernelRule, MatmulProblem, MRange
from nvfp4_tvm.schedules.kernel import CudaKernel

Config = TypeVar("Config")


class HopperRule(KernelRule, Generic[Config]):
    """Any N and K on sm_90, bf16 and fp16 activations, the M that `choices` names.

    Parameters
    ----------
    config : Config, optional
        Use this configuration for every M instead of choosing one; tuners and tests pass it.
    """

    def __init__(self, config: Config | None = None) -> None:
        self.config = config

    @abstractmethod
    def choices(self, N: int, K: int, arch: Arch) -> Sequence[tuple[MRange, Config]]:
        """Return the ranges of M with their configurations, in order."""

    @abstractmethod
    def kernel(self, problem: MatmulProblem, config: Config, arch: Arch) -> CudaKernel:
        """Return the kernel of one configuration, for any M."""

    def ranges(self, N: int, K: int, arch: Arch) -> list[MRange]:
        """Return the ranges of M that have one configuration each, in order."""
        if not arch.wgmma:
            return []
        if self.config is not None:
            return [MRange()]
        return [m_range for m_range, _ in self.choices(N, K, arch)]

    def apply(self, problem: MatmulProblem, target: Target) -> CudaKernel | None:
        """Return the kernel, or None where the family does not apply or has no one configuration."""
        arch = self.arch_of(problem, target)
        if arch is None:
            return None
        if not arch.wgmma:
            return self.refuse(problem, f"{arch.name} has no wgmma, expected {_wgmma_names()}")
        config = self.config
        if config is None:
            ranges = self.choices(problem.N, problem.K, arch)
            config = next((chosen for m_range, chosen in ranges if m_range.covers(problem.M)), None)
            if config is None:
                return self.refuse(
                    problem, f"others are faster, or no one configuration covers M {problem.M}"
                )
        # Ranges share configurations, hence kernels
        return self.kernel(replace(problem, M=MRange(), dynamic=True), config, arch)


def _wgmma_names() -> str:
    return ", ".join(arch.name for arch in ARCHS.values() if arch.wgmma)
