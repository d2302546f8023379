"""Which kernel runs for which M on experts; see :data:`.dispatch.TABLES` for weights without."""

from __future__ import annotations

from collections.abc import Sequence

from nvfp4_tvm.schedules.base import KernelRule, MRange
from nvfp4_tvm.schedules.cpu_grouped import CPUGrouped
from nvfp4_tvm.schedules.gemm_mma_grouped import GroupedGemm
from nvfp4_tvm.schedules.gemm_plain_grouped import PlainGrouped
from nvfp4_tvm.schedules.gemv_grouped import GroupedGemv
from nvfp4_tvm.schedules.grouped import GroupedProblem


def grouped_table(problem: GroupedProblem, kind: str) -> Sequence[tuple[MRange, Sequence[KernelRule]]]:
    """Return ranges of M with the rules to try in order, for a kind of target (cuda or llvm)."""
    if kind == "llvm":
        return ((MRange(), (CPUGrouped(),)),)
    return ((MRange(), (GroupedGemv(problem), GroupedGemm(problem), PlainGrouped())),)
