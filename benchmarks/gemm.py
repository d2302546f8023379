"""Times of the matmul kernels beside others: cold and warm weights, launched in a graph and called one by one.

    python -m benchmarks.gemm --shapes all --rows 1,8,64,512,4096 -o benchmarks/results/gemm_NAME.json

For every weight, M and contender:

``NAME_us``          microseconds a launch in one CUDA graph, every launch with the next of a ring of weights,
                     four times the L2: what a model's decoding or prefill sees
``NAME_warm_us``     the same with one weight again and again: in the L2, if it fits
``NAME_latency_us``  from calling until the result is there, one call at a time, from Python, warm
``NAME_err``         relative error against float64; a time without a right result is not recorded

``floor_us`` is the time to move the bytes at the speed of a device copy, and the shares of our cold time are of
what this card was measured to reach: ``copy_bytes_per_s`` and ``mm_flops`` (``torch.mm`` on bfloat16, 8192
cubed). Rows have the form that `benchmarks.gemm_bars`, `benchmarks.gemm_tables` and `benchmarks.gemm_plot`
read.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import gemm_plot, record
from benchmarks.gemm_bars import ERROR, OURS
from benchmarks.markdown import markdown_table
from benchmarks.peers import Contender, dequantize, installed
from benchmarks.shapes import parse_rows, parse_shapes, parse_words
from nvfp4_tvm.schedules.model import floor_us, moved_bytes
from nvfp4_tvm.tuning.cuda_runner import copy_bandwidth, time_launches

#: Times of the L2 that a ring of weights is larger.
COLD = 4
#: Microseconds that the replays of one figure take together.
BUDGET = 15_000.0
#: Rows whose result is compared.
CHECKED = 64
#: Errors above four roundings are no result. Humming's sums have up to 0.0043, Marlin rounds scales: told beside.
WRONG = 4 * ERROR
_GLOBAL_SCALE = 1 / (6 * 448)


def mm_flops(size: int = 8192) -> float:
    """Return operations a second of ``torch.mm`` on large bfloat16 matrices."""
    a, b, out = (torch.randn(size, size, device="cuda").bfloat16() for _ in range(3))
    torch.mm(a, b, out=out)
    return 2 * size**3 / (time_launches([lambda: torch.mm(a, b, out=out)], 10 * BUDGET) * 1e-6)


def latency_us(
    contender: Contender, a: torch.Tensor, weight: Any, out: torch.Tensor, calls: int = 50
) -> float:
    """Return the median microseconds from a call until its result is there."""
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        contender.run(a, weight, out)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6


def shares(row: dict[str, Any], bandwidth: float, flops: float) -> dict[str, float]:
    """Return our cold time's bandwidth and operations as shares of what the card reaches."""
    N, K, M, seconds = row["N"], row["K"], row["M"], row[f"{OURS}_us"] * 1e-6
    return {
        "bandwidth_share": round(moved_bytes(N, K, M) / seconds / bandwidth, 3),
        "flops_share": round(2 * M * N * K / seconds / flops, 3),
    }


def refusal(problem: Exception) -> str:
    """Return what stands in the place of an error of a contender that refuses."""
    return f"{type(problem).__name__}: {str(problem)[:120]}"


def measure(
    contender: Contender, weights: Sequence[Any], a: torch.Tensor, out: torch.Tensor, exact: torch.Tensor
) -> dict[str, Any]:
    """Return the figures of one contender, by name; None where it refuses or is wrong."""
    name = contender.name
    try:
        out.fill_(torch.nan)
        contender.run(a, weights[0], out)
        error = float((out[:CHECKED].double() - exact).norm() / exact.norm())
        if not error <= WRONG:
            return {f"{name}_us": None, f"{name}_err": f"wrong: relative error {error:.3g}"}
        cold = time_launches([lambda w=w: contender.run(a, w, out) for w in weights], BUDGET)
        warm = time_launches([lambda: contender.run(a, weights[0], out)] * len(weights), BUDGET)
        figures = {"": cold, "_warm": warm, "_latency": latency_us(contender, a, weights[0], out)}
    except Exception as problem:  # what refuses a case is part of the table
        return {f"{name}_us": None, f"{name}_err": refusal(problem)}
    timed = {f"{name}{kind}_us": round(value, 2) for kind, value in figures.items()}
    return {**timed, f"{name}_err": round(error, 6)}


def measure_shape(
    N: int, K: int, rows: Sequence[int], contenders: Sequence[Contender], bandwidth: float
) -> list[dict[str, Any]]:
    """Return a row for every M."""
    properties = torch.cuda.get_device_properties(0)
    count = max(2, math.ceil(COLD * properties.L2_cache_size / (N * K * 9 // 16)))
    packed = [torch.randint(0, 256, (N, K // 2), dtype=torch.uint8, device="cuda") for _ in range(count)]
    scales = [
        (torch.rand(N, K // 16, device="cuda") * 200 + 16).to(torch.float8_e4m3fn) for _ in range(count)
    ]
    exact = dequantize(packed[0], scales[0], _GLOBAL_SCALE).double()
    weights: dict[str, list[Any] | str] = {}
    for contender in contenders:
        try:
            weights[contender.name] = [
                contender.prepare(codes, scale, _GLOBAL_SCALE)
                for codes, scale in zip(packed, scales, strict=True)
            ]
        except Exception as problem:  # the others are worth having
            weights[contender.name] = refusal(problem)
    found = []
    for M in rows:
        a = torch.randn(M, K, device="cuda").bfloat16()
        out = torch.empty(M, N, dtype=torch.bfloat16, device="cuda")
        reference = a[:CHECKED].double() @ exact.T
        row: dict[str, Any] = {"shape": f"{N}x{K}", "N": N, "K": K, "M": M}
        row["floor_us"] = round(floor_us(N, K, M, bandwidth), 2)
        for contender in contenders:
            prepared = weights[contender.name]
            if isinstance(prepared, str):
                row |= {f"{contender.name}_us": None, f"{contender.name}_err": prepared}
            else:
                row |= measure(contender, prepared, a, out, reference)
        found.append(row)
    return found


def table(rows: Sequence[dict[str, Any]], contenders: Sequence[str]) -> str:
    """Return the figures in Markdown: cold, warm and latency of each contender."""
    columns = ["N x K, M", "floor", *contenders, "share of bandwidth", "share of flops"]

    def cell(row: dict[str, Any], name: str) -> str:
        values = [row.get(f"{name}{kind}_us") for kind in ("", "_warm", "_latency")]
        return " / ".join("refused" if value is None else f"{value:.1f}" for value in values)

    lines = [
        [
            f"{row['shape']}, {row['M']}",
            f"{row['floor_us']:.1f}",
            *(cell(row, name) for name in contenders),
            *(str(row.get(key, "")) for key in ("bandwidth_share", "flops_share")),
        ]
        for row in rows
    ]
    return "Microseconds: cold / warm / latency.\n\n" + markdown_table(columns, lines)


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", type=parse_shapes, default="all", help="NxK or names, or all")
    parser.add_argument("--rows", type=parse_rows, default="1,8,16,64,128,512,1024,4096", help="M, or all")
    parser.add_argument("--contenders", type=parse_words, help="names; default: all that are installed")
    parser.add_argument("--marlin-library", help="vLLM's _C.abi3.so; default: that of an installed vLLM")
    parser.add_argument("-o", "--output", type=Path, help="JSON; a picture goes beside it")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks.gemm measures on a GPU, and found none", file=sys.stderr)
        return 2
    contenders = [
        contender
        for contender in installed(arguments.marlin_library)
        if not arguments.contenders or contender.name in arguments.contenders
    ]
    torch.manual_seed(0)
    flops, bandwidth = mm_flops(), copy_bandwidth()
    properties = torch.cuda.get_device_properties(0)
    report = {"device": properties.name, "copy_bytes_per_s": bandwidth, "mm_flops": flops}
    rows: list[dict[str, Any]] = []
    for N, K in arguments.shapes:
        for row in measure_shape(N, K, arguments.rows, contenders, bandwidth):
            rows.append(row | shares(row, bandwidth, flops) if row.get(f"{OURS}_us") is not None else row)
        torch.cuda.empty_cache()
        if arguments.output:  # what there is when time runs out is worth having
            record.write(arguments.output, rows, **report)
    print(table(rows, [contender.name for contender in contenders]))
    if arguments.output:
        gemm_plot.times({**record.environment(), **report, "rows": rows}).savefig(
            arguments.output.with_suffix(".png")
        )
    return int(any(row.get(f"{OURS}_us") is None for row in rows if f"{OURS}_us" in row))


if __name__ == "__main__":
    sys.exit(main())
