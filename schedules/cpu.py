"""Which CPU kernel runs for which M, on every llvm target."""

from __future__ import annotations

from nvfp4_tvm.schedules.base import MRange
from nvfp4_tvm.schedules.cpu_gemm import CPUGemm
from nvfp4_tvm.schedules.cpu_gemm_amx import CPUGemmAMX
from nvfp4_tvm.schedules.cpu_gemv import CPUGemv

#: Ranges of M, in order and without gaps, with the rules to try in order.
CPU_TABLE = (
    (MRange(1, 1), (CPUGemv(),)),
    (MRange(2, 2), (CPUGemv(),)),
    (MRange(3, 4), (CPUGemv(),)),
    (MRange(5, 8), (CPUGemmAMX(), CPUGemv())),
    (MRange(9), (CPUGemmAMX(), CPUGemm())),
)
