"""GEMV configurations for weights that were measured, ahead of the model's choice.

Found on an H200 on 2026-11-22 with cold weights in a CUDA graph: the best of 5 to 25 configurations for a weight
and M up to 8 or 16, of 2 to 10 above. Two were measured with the loads of weights in another order: (43008, 5376)
for M up to 16 and (4096, 4096) up to 32. (6144, 4096) up to 32 was chosen because its neighbours spilled. Other
weights get the choice of the model in :func:`nvfp4_tvm.schedules.gemv.choose`.
"""

from __future__ import annotations

#: (N, K) to (KS, NT, D) or (KS, NT, D, resident) by the largest M
#: (:class:`nvfp4_tvm.schedules.gemv_kernel.GemvConfig`).
MEASURED: dict[tuple[int, int], dict[int, tuple[int, ...]]] = {
    (43008, 5376): {8: (4, 3, 1), 16: (4, 3, 1, 4)},
    (21504, 5376): {8: (4, 2, 3), 16: (4, 3, 2), 24: (3, 3, 2)},
    (5376, 21504): {8: (24, 3, 1), 16: (12, 3, 2), 24: (12, 3, 2)},
    (15360, 3840): {8: (6, 2, 2), 16: (5, 2, 2), 24: (5, 4, 1)},
    (3840, 15360): {4: (20, 2, 1), 8: (24, 2, 2), 16: (15, 2, 2), 24: (12, 2, 4)},
    (4096, 4096): {4: (16, 1, 2), 24: (16, 2, 2), 32: (11, 2, 2)},
    (28672, 4096): {8: (4, 2, 2), 16: (2, 2, 2), 24: (3, 4, 1)},
    (4096, 14336): {8: (28, 2, 1), 16: (16, 2, 2), 24: (14, 2, 2)},
    (6144, 4096): {8: (12, 1, 3), 16: (16, 3, 2), 24: (16, 3, 1), 32: (8, 3, 1)},
    (8192, 28672): {8: (12, 2, 2), 16: (12, 4, 1)},
}
