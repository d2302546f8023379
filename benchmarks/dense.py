"""Plain linear layers, 16-bit weights, on a GPU: this project's kernels beside cuBLAS (torch), on cold weights.

    python -m benchmarks.dense -o benchmarks/results/dense_NAME.json
    python -m benchmarks.dense --sweep --shapes 128256x4096 --rows 1,64

Checkpoints leave the head and some layers unquantized; compiled without cuBLAS they run these kernels
(:mod:`nvfp4_tvm.schedules.dense`). ``_us`` are microseconds a launch in one CUDA graph, every launch with the next
of a ring of weights, four times the L2 (at most 400 of them); ``_err`` are relative errors against float64, and
a time without a right result is not recorded. ``--sweep`` tries configurations of the kernel instead and tells the
best for each M.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from tvm.target import Target

from benchmarks import record
from benchmarks.gemm import BUDGET, CHECKED, COLD
from benchmarks.gemm_bars import ERROR
from benchmarks.markdown import markdown_table
from benchmarks.shapes import parse_rows, parse_shapes, parse_words
from nvfp4_tvm.codegen.dense import build_dense, build_dense_kernels
from nvfp4_tvm.schedules.base import MRange
from nvfp4_tvm.schedules.dense import dense_kernel
from nvfp4_tvm.schedules.dense_kernel import STEP_K, DenseConfig
from nvfp4_tvm.schedules.dense_problem import DenseProblem
from nvfp4_tvm.schedules.intrin.mma_sync import TOKENS
from nvfp4_tvm.target import resolve_target
from nvfp4_tvm.tuning.cuda_runner import copy_bandwidth, time_launches

#: The head, a projection and gate_up of Llama 3 8B, and the router of a mixture of 128 experts.
SHAPES = "128256x4096,4096x4096,28672x4096,128x2048"
#: Errors above two roundings are no result.
WRONG = 2 * ERROR

Contender = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Any]


def configurations(K: int, M: int) -> Iterator[DenseConfig]:
    """Yield configurations for M rows: blocks of enough tokens, or of 64."""
    eights = min(8, 1 << (-(-M // TOKENS) - 1).bit_length())
    for KS, NT, D in itertools.product((2, 4, 8, 16), (1, 2, 4), (1, 2, 3, 4, 6)):
        # Accumulators and weights in flight of a thread: beyond that, ptxas spills
        if 4 * NT * eights + 16 * NT * D <= 192 and KS <= -(-K // STEP_K):
            yield DenseConfig(KS, NT, eights, D)


def contenders(problem: DenseProblem, target: Target, M: int, sweep: bool) -> dict[str, Contender]:
    """Return what is measured by name, compiled."""

    def cublas(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> None:
        torch.mm(x, weight.T, out=out)

    if not sweep:
        return {"nvfp4_tvm": build_dense(problem, target).function, "cublas": cublas}
    configs = list(configurations(problem.K, M))

    def build(config: DenseConfig) -> Contender:
        return build_dense_kernels(problem, [(MRange(), dense_kernel(problem, config))], target).function

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return {"cublas": cublas, **dict(zip(map(str, configs), pool.map(build, configs), strict=True))}


def measure(problem: DenseProblem, M: int, found: dict[str, Contender], bandwidth: float) -> dict[str, Any]:
    """Return a row."""
    N, K, dtype = problem.N, problem.K, getattr(torch, problem.dtype)
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    count = max(2, math.ceil(COLD * cache / (2 * N * K)))
    weights = [torch.randn(N, K, device="cuda").to(dtype) for _ in range(min(count, 400))]
    x, out = torch.randn(M, K, device="cuda").to(dtype), torch.empty(M, N, device="cuda", dtype=dtype)
    exact = x[:CHECKED].double() @ weights[0].double().T
    moved = 2 * (N * K + M * K + M * N)
    row: dict[str, Any] = {"N": N, "K": K, "M": M, "dtype": problem.dtype}
    row["floor_us"] = round(moved / bandwidth * 1e6, 2)
    for name, run in found.items():
        out.fill_(torch.nan)
        run(x, weights[0], out)
        error = float((out[:CHECKED].double() - exact).norm() / exact.norm())
        row[f"{name}_err"] = round(error, 6) if error <= WRONG else f"wrong: relative error {error:.3g}"
        launches = [lambda w=w, run=run: run(x, w, out) for w in weights]
        row[f"{name}_us"] = round(time_launches(launches, BUDGET), 2) if error <= WRONG else None
    return row


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the times in Markdown."""

    def cell(value: float | None) -> str:
        return "wrong" if value is None else f"{value:.1f}"

    lines = [
        [
            f"{row['N']} x {row['K']}, {row['dtype']}",
            str(row["M"]),
            *(cell(row[key]) for key in ("floor_us", "nvfp4_tvm_us", "cublas_us")),
        ]
        for row in rows
    ]
    return markdown_table(["N x K", "M", "floor", "nvfp4_tvm", "cuBLAS"], lines)


def best(row: dict[str, Any], count: int = 8) -> str:
    """Return a line with the fastest configurations of a sweep's row."""
    times = {
        key[:-3]: row[key]
        for key in row
        if key.endswith("_us") and key != "floor_us" and row[key] is not None
    }
    fastest = sorted(times, key=times.__getitem__)[:count]
    told = ", ".join(f"{name} {times[name]}" for name in fastest)
    return (
        f"{row['N']}x{row['K']} M={row['M']}: floor {row['floor_us']}, cublas {times.get('cublas')}; {told}"
    )


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", type=parse_shapes, default=SHAPES, help="NxK,...")
    parser.add_argument("--rows", type=parse_rows, default="1,8,16,32,64,256,2048", help="M")
    parser.add_argument("--dtypes", type=parse_words, default="bfloat16", help="bfloat16, float16")
    parser.add_argument("--sweep", action="store_true", help="try configurations")
    parser.add_argument("-o", "--output", type=Path, help="JSON")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks.dense measures on a GPU, and found none", file=sys.stderr)
        return 2
    torch.manual_seed(0)
    target, bandwidth = resolve_target("auto").target, copy_bandwidth()
    rows = []
    for dtype, (N, K), M in itertools.product(arguments.dtypes, arguments.shapes, arguments.rows):
        problem = DenseProblem(N, K, dtype, dtype)
        rows.append(measure(problem, M, contenders(problem, target, M, arguments.sweep), bandwidth))
        if arguments.sweep:
            print(best(rows[-1]), flush=True)
        torch.cuda.empty_cache()
        if arguments.output:
            device = torch.cuda.get_device_name()
            record.write(arguments.output, rows, device=device, copy_bytes_per_s=bandwidth)
    if not arguments.sweep:
        print(table(rows))
    return int(any(row.get("nvfp4_tvm_us", 0) is None for row in rows))


if __name__ == "__main__":
    sys.exit(main())
