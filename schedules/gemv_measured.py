"""GEMV configurations for weights that were measured, ahead of the model's choice.

Found on an H200 on 2026-11-22 with cold weights in a CUDA graph: the best of a few dozen configurations a weight,
most of them tried with an earlier form of the kernel. (8192, 28672) up to 16 rows, and (43008, 5376) up to 8,
were chosen for fitting in registers and waves, not by comparison. A weight that is not listed gets the choice
of the model in :func:`nvfp4_tvm.schedules.gemv.choose`.
"""

from __future__ import annotations

#: (N, K) to (KS, NT, D) for M up to 4, 8 and 16 (:class:`nvfp4_tvm.schedules.gemv_kernel.GemvConfig`).
MEASURED: dict[tuple[int, int], dict[int, tuple[int, int, int]]] = {
    (43008, 5376): {4: (3, 1, 3), 8: (3, 2, 2), 16: (2, 4, 1)},
    (21504, 5376): {4: (3, 1, 3), 8: (3, 2, 2), 16: (3, 2, 2)},
    (5376, 21504): {4: (12, 1, 3), 8: (24, 3, 1), 16: (12, 3, 2)},
    (15360, 3840): {4: (12, 2, 3), 8: (12, 2, 3), 16: (5, 3, 1)},
    (3840, 15360): {4: (12, 1, 3), 8: (10, 1, 3), 16: (10, 2, 3)},
    (4096, 4096): {4: (16, 1, 3), 8: (16, 1, 3), 16: (12, 2, 3)},
    (28672, 4096): {4: (4, 2, 2), 8: (4, 2, 2), 16: (2, 2, 2)},
    (4096, 14336): {4: (14, 2, 2), 8: (14, 2, 2), 16: (14, 2, 2)},
    (6144, 4096): {4: (12, 1, 3), 8: (12, 1, 3), 16: (16, 3, 2)},
    (8192, 28672): {4: (14, 2, 1), 8: (14, 2, 1), 16: (7, 2, 2)},
}
