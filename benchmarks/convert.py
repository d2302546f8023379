"""Speed of packing: canonical codes and scales of a weight into the layout that all kernels read.

    python -m benchmarks.convert --shapes 4096x4096,28672x4096 -o benchmarks/results/convert_NAME.json

Beside each other: `nvfp4_tvm.layout.pack` in NumPy, and `nvfp4_tvm.torch.pack` on the CPU and, where there is
one, on the GPU. The rate is in 10^6 bytes of codes and scales a second. All must give the same bits.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks import record
from benchmarks.markdown import markdown_table
from benchmarks.shapes import parse_shapes
from nvfp4_tvm import layout
from nvfp4_tvm.torch import pack

Row = dict[str, Any]


def contenders(codes: np.ndarray, scales: np.ndarray) -> dict[str, Callable[[], Any]]:
    """Return what packs a weight, by name; each returns its words."""
    rows = np.ones(codes.shape[0], np.float32)
    found: dict[str, Callable[[], Any]] = {"numpy": lambda: layout.pack(codes, scales, rows).words}
    for device in ["cpu"] + ["cuda"] * torch.cuda.is_available():
        tensors = [torch.from_numpy(array).to(device) for array in (codes, scales, rows)]

        def on_device(tensors: list[torch.Tensor] = tensors, device: str = device) -> np.ndarray:
            words = pack(*tensors).words
            if device == "cuda":
                torch.cuda.synchronize()
            return words

        found[f"torch, {device}"] = on_device
    return found


def measure(N: int, K: int, repeats: int) -> list[Row]:
    """Return a row for each contender.

    Raises
    ------
    ValueError
        If two of them pack differently.
    """
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (N, K // 2), np.uint8)
    scales = rng.integers(0, 0x7F, (N, K // 16), np.uint8)
    rows, first = [], None
    for name, run in contenders(codes, scales).items():
        words = np.asarray(torch.as_tensor(run()).cpu())  # also the first, slower call
        first = words if first is None else first
        if not np.array_equal(first, words):
            raise ValueError(f"{N}x{K}: {name} packs other bits than numpy")
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        median = statistics.median(times)
        rate = (codes.nbytes + scales.nbytes) / median / 1e6
        rows.append(
            {"shape": f"{N}x{K}", "N": N, "K": K, "contender": name, "pack_ms": round(median * 1e3, 3)}
            | {"mb_per_s": round(rate, 1)}
        )
    return rows


def table(rows: Sequence[Row]) -> str:
    """Return the rates in Markdown."""
    names = list(dict.fromkeys(row["contender"] for row in rows))
    rates = {(row["shape"], row["contender"]): f"{row['mb_per_s']:.0f}" for row in rows}
    lines = [
        [shape, *(rates[shape, name] for name in names)] for shape in dict.fromkeys(r["shape"] for r in rows)
    ]
    return "MB/s packed.\n\n" + markdown_table(["", *names], lines)


def picture(rows: Sequence[Row]) -> Figure:
    """Return bars of the rates."""
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    labels = [f"{row['shape']}\n{row['contender']}" for row in rows]
    axes.bar(labels, [row["mb_per_s"] for row in rows])
    axes.set(yscale="log", ylabel="MB/s packed")
    axes.tick_params(axis="x", labelsize=6)
    return figure


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", type=parse_shapes, default="4096x4096,28672x4096", help="NxK or names")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path, help="JSON; a picture goes beside it")
    arguments = parser.parse_args()
    rows = [row for N, K in arguments.shapes for row in measure(N, K, arguments.repeats)]
    print(table(rows))
    if arguments.output:
        record.write(arguments.output, rows)
        picture(rows).savefig(arguments.output.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
