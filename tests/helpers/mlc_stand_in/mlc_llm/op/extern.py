"""Which external kernels a compilation uses."""

from dataclasses import dataclass


@dataclass
class ExternModuleStore:
    cutlass_group_gemm: bool = False


STORE = ExternModuleStore()
