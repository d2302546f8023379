"""Plain linear layers on CUDA: which configuration of :mod:`.dense_kernel` runs for which M.

TVM's own schedule for such a layer (dlight) uses no tensor cores for bfloat16, and at M > 1 reads the head at a
fraction of the memory's speed. cuBLAS is not in the TVM that this package pins.
"""

from __future__ import annotations

from dataclasses import replace

from tvm.target import Target

from nvfp4_tvm.schedules.base import TENSOR_CORE_DTYPES, MRange
from nvfp4_tvm.schedules.dense_kernel import ELEMENTS, STEP_K, DenseConfig, dense_prim_func
from nvfp4_tvm.schedules.dense_problem import DenseProblem
from nvfp4_tvm.schedules.intrin.mma_sync import TOKENS
from nvfp4_tvm.schedules.kernel import CudaKernel, Launch

#: For M up to the first number: eights of tokens, tiles and steps in flight, and the warps for weights of few rows
#: and of many. Within 5 % of the best of some 40 configurations (``benchmarks/dense.py --sweep`` on an H200) of
#: 128256x4096, 28672x4096 and 4096x4096, where M was 1, 8, 16, 32, 64 or 2048.
_CHOICES: tuple[tuple[int | None, tuple[int, int, int], tuple[int, int]], ...] = (
    (8, (1, 1, 1), (16, 16)),
    (16, (2, 2, 2), (16, 2)),
    (32, (4, 2, 1), (8, 4)),
    (64, (8, 2, 1), (8, 2)),
    (None, (8, 4, 1), (2, 2)),
)
#: Rows from which a weight has many: its blocks fill the SMs several times over without splitting K.
_MANY_ROWS = 16_384


def fits(problem: DenseProblem, target: Target) -> bool:
    """Whether there is a CUDA kernel: for 16-bit operands whose rows are whole 16-byte loads."""
    return target.kind.name == "cuda" and problem.dtype in TENSOR_CORE_DTYPES and problem.K % ELEMENTS == 0


def choose(problem: DenseProblem) -> list[tuple[MRange, DenseConfig]]:
    """Choose the configurations for every M, lowest range first; no warp is without a step."""
    steps = -(-problem.K // STEP_K)
    chosen: list[tuple[MRange, DenseConfig]] = []
    low = 1
    for high, (NB, NT, D), warps in _CHOICES:
        # A weight of any number of rows is a head
        KS = warps[problem.N is None or problem.N >= _MANY_ROWS]
        config = DenseConfig(min(KS, steps), NT, NB, D)
        ends = problem.K % STEP_K or problem.N is None or problem.N % config.rows
        if ends or problem.index_dtype == "int64":
            # Looking for ends, and wide indices, take registers that four tiles of 64 tokens do not leave to ptxas
            config = replace(config, NT=min(NT, 2))
        if chosen and chosen[-1][1] == config:
            low = chosen.pop()[0].low
        chosen.append((MRange(low, high), config))
        low = (high or 0) + 1
    return chosen


def dense_kernels(problem: DenseProblem, target: Target) -> list[tuple[MRange, CudaKernel]] | None:
    """Return the kernels ``f(x, weight, out)`` for every M, lowest range first, or None if there are none.

    Parameters
    ----------
    problem : DenseProblem
        See :func:`fits`.
    target : Target
        None is returned for any that is not CUDA.
    """
    if not fits(problem, target):
        return None
    return [(m_range, dense_kernel(problem, config)) for m_range, config in choose(problem)]


def dense_kernel(problem: DenseProblem, config: DenseConfig) -> CudaKernel:
    """Return the kernel of one configuration."""
    launch = Launch(dense_prim_func(problem, config), ("x", "weight", "out"), "tirx")
    return CudaKernel(f"m{config.NB * TOKENS}_{config}", (launch,))
