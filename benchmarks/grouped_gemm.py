"""Times of the matmuls on experts of mixture models beside bfloat16: cold weights, launched in a graph.

    python -m benchmarks.grouped_gemm build --archs sm_90 --jobs 8
    python -m benchmarks.grouped_gemm measure -o benchmarks/results/grouped_gemm_h200.json

``build`` compiles all kernels into the folder of `nvfp4_tvm.codegen.cache` (``NVFP4_TVM_CACHE`` names another);
it needs no GPU. ``measure`` takes, for each model's two layers of experts and each number of tokens, the kernels
that a compiled model would: for one token those on the experts it selects, for more those on sorted rows.
Tokens pick their experts at random, without repetition.

``nvfp4_tvm_us``        microseconds a launch, the median over replays of a graph of launches with other routings
``grouped_mm_bf16_us``  ``torch.nn.functional.grouped_mm`` on weights that were dequantized once
``mm_loop_bf16_us``     ``torch.mm`` for each expert that has rows, whose numbers the host knows beforehand
``floor_us``            bytes of the weights that the routing touches, activations and results, at a copy's speed

A time counts only if the result is right: sampled elements against float64, NaN before, twice the same bits.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import record
from benchmarks.grouped_tables import table
from benchmarks.shapes import parse_rows, parse_words
from nvfp4_tvm import layout, numerics
from nvfp4_tvm.schedules.base import MRange
from nvfp4_tvm.schedules.grouped import GroupedProblem
from nvfp4_tvm.schedules.model import weight_bytes
from nvfp4_tvm.torch_device import device_arch
from nvfp4_tvm.torch_library import Library, find_library
from nvfp4_tvm.tuning.cuda_runner import copy_bandwidth, time_launches

#: Relative error of sampled elements: one rounding to bfloat16 (1.7e-3 rms) and what few samples add.
ERROR = 2.5e-3
#: Microseconds that the replays of one figure take together.
BUDGET = 30_000.0
#: Rows, and tiles of 16 columns, whose elements are compared.
ROWS, TILES = 12, 4
_GLOBAL_SCALE = 1 / (6 * 448)


@dataclass(frozen=True)
class Layer:
    """One matmul on experts of a model.

    Attributes
    ----------
    model, name : str
        For tables.
    experts, top : int
        Experts, and how many a token is routed to.
    N, K : int
        Shape of an expert's weight.
    shared_x : bool
        Whether all experts of a token multiply the same row.
    """

    model: str
    name: str
    experts: int
    top: int
    N: int
    K: int
    shared_x: bool

    def problem(self, tokens: int) -> GroupedProblem:
        """Return what a compiled model asks for."""
        if tokens > 1:
            return GroupedProblem(self.N, self.K, experts=self.experts)
        M = MRange(self.top, self.top)
        return GroupedProblem(self.N, self.K, M, experts=self.experts, selected=True, shared_x=self.shared_x)


def _model(name: str, experts: int, top: int, hidden: int, inner: int) -> list[Layer]:
    return [
        Layer(name, "gate_up", experts, top, 2 * inner, hidden, True),
        Layer(name, "down", experts, top, hidden, inner, False),
    ]


#: From the models' config.json.
MODELS = {
    "qwen3_30b_a3b": _model("Qwen3-30B-A3B", 128, 8, 2048, 768),
    "mixtral_8x7b": _model("Mixtral-8x7B", 8, 2, 4096, 14336),
}


@dataclass
class Routing:
    """Which rows are whose.

    Attributes
    ----------
    experts : numpy.ndarray
        Expert of each row, int32, ascending unless one token is routed.
    indptr : torch.Tensor
        For our kernels.
    offsets : torch.Tensor
        Where each expert's rows end, int32 [E].
    """

    experts: np.ndarray
    indptr: torch.Tensor
    offsets: torch.Tensor


def routings(
    layer: Layer, tokens: int, count: int, rng: np.random.Generator, device: str = "cuda"
) -> list[Routing]:
    """Draw routings; of one token ones that share no expert until all were chosen."""
    found = []
    order = rng.permutation(layer.experts)
    for index in range(count):
        if tokens == 1:
            chosen = np.roll(order, -index * layer.top)[: layer.top]
        else:
            keys = rng.random((tokens, layer.experts))
            chosen = np.sort(np.argpartition(keys, layer.top, axis=1)[:, : layer.top].ravel())
        ends = np.searchsorted(np.sort(chosen), np.arange(layer.experts + 1)).astype(np.int32)
        indptr = chosen[None].astype(np.int32) if tokens == 1 else ends
        found.append(
            Routing(chosen, torch.from_numpy(indptr).to(device), torch.from_numpy(ends[1:].copy()).to(device))
        )
    return found


class Weights:
    """Random experts, packed, and for the baselines in bfloat16."""

    def __init__(self, layer: Layer, device: str = "cuda") -> None:
        N, K, E = layer.N, layer.K, layer.experts
        self.layer = layer

        def draw(shape: tuple[int, ...], low: int, high: int) -> torch.Tensor:
            drawn = torch.randint(low, high, (E, *shape, 4), dtype=torch.uint8, device=device)
            return drawn.view(torch.uint32)[..., 0]

        # Any bits are codes; these bytes are scales from 0.25 to 240
        self.words = draw(layout.words_shape(N, K), 0, 256)
        self.scales = draw(layout.scales_shape(N, K), 0x28, 0x78)
        self.rows = torch.full((E, *layout.global_scale_shape(N)), _GLOBAL_SCALE, device=device)
        # Not these weights: dequantizing all takes longer than the measurement, whose times do not depend on it
        self.plain = torch.randn(E, N, K, dtype=torch.bfloat16, device=device)

    def exact(self, expert: int, tiles: Sequence[int]) -> np.ndarray:
        """Return rows of some tiles of an expert's weight, float64 [16 tiles, K]."""
        N, K = layout.TILE_N * len(tiles), self.layer.K
        words, scales = (
            part[expert].view(torch.int32)[list(tiles)].cpu().numpy().view(np.uint32)
            for part in (self.words, self.scales)
        )
        ones = np.ones(N, np.float32)
        codes, bytes_, _ = layout.unpack(layout.PackedWeight(N, K, words, scales, ones))
        values = numerics.dequantize(codes, bytes_, np.float32(1), np.float64)
        return values * np.float64(np.float32(_GLOBAL_SCALE))


def relative_error(
    weights: Weights, routing: Routing, x: torch.Tensor, out: torch.Tensor, rng: np.random.Generator
) -> float:
    """Return the error of sampled elements."""
    layer = weights.layer
    rows = np.unique(np.append(rng.integers(0, len(out), ROWS), [0, len(out) - 1]))
    tiles = sorted(rng.choice(layer.N // layout.TILE_N, TILES, replace=False))
    columns = np.concatenate([np.arange(16 * tile, 16 * tile + 16) for tile in tiles])
    wrong, size = 0.0, 0.0
    for row in rows:
        exact = (
            weights.exact(int(routing.experts[row]), tiles) @ x[min(row, len(x) - 1)].double().cpu().numpy()
        )
        found = out[row].double().cpu().numpy()[columns]
        wrong, size = wrong + ((found - exact) ** 2).sum(), size + (exact**2).sum()
    return math.sqrt(wrong / size)


def measure_ours(
    library: Library, weights: Weights, chosen: Sequence[Routing], x: torch.Tensor, rng: np.random.Generator
) -> dict[str, Any]:
    """Return time and error of our kernels, or why there is no time."""
    M = len(chosen[0].experts)
    out = torch.empty(M, weights.layer.N, dtype=torch.bfloat16, device="cuda")
    workspace = torch.empty(max(library.workspace_bytes(M), 1), dtype=torch.uint8, device="cuda")

    def launch(routing: Routing) -> Callable[[], None]:
        arguments = (x, weights.words, weights.scales, weights.rows, routing.indptr, out, workspace)
        return lambda: library.function(*arguments)

    results = []
    for _ in range(2):
        out.fill_(torch.nan)
        launch(chosen[0])()
        results.append(out.clone())
    error = relative_error(weights, chosen[0], x, out, rng)
    if not (out.isfinite().all() and torch.equal(*results) and error <= ERROR):
        return {"nvfp4_tvm_us": None, "nvfp4_tvm_err": f"wrong: relative error {error:.3g}"}
    us = time_launches([launch(routing) for routing in chosen], BUDGET)
    return {"nvfp4_tvm_us": round(us, 2), "nvfp4_tvm_err": round(error, 6)}


def baselines(
    weights: Weights, x: torch.Tensor, out: torch.Tensor
) -> Iterator[tuple[str, Callable[[Routing], None]]]:
    """Yield the names of what there is in bfloat16, and what launches it."""
    rows = x.expand(len(out), -1).contiguous()
    grouped = getattr(torch.nn.functional, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)
    if grouped is not None:
        yield "grouped_mm_bf16", lambda routing: grouped(rows, weights.plain.mT, offs=routing.offsets)

    def loop(routing: Routing) -> None:
        experts, first = np.unique(routing.experts, return_index=True)
        order = np.argsort(first)
        ends = [*first[order][1:], len(out)]
        for expert, low, high in zip(experts[order], first[order], ends, strict=True):
            torch.mm(rows[low:high], weights.plain[expert].T, out=out[low:high])

    yield "mm_loop_bf16", loop


def measure_layer(
    layer: Layer, tokens: Sequence[int], libraries: dict[bool, Library], bandwidth: float
) -> list[dict[str, Any]]:
    """Return a row for each number of tokens."""
    weights, rng = Weights(layer), np.random.default_rng(0)
    found = []
    for count in tokens:
        M = count * layer.top
        chosen = routings(layer, count, max(2, layer.experts // layer.top) if count == 1 else 4, rng)
        active = statistics.mean(len(np.unique(routing.experts)) for routing in chosen)
        one_row = count == 1 and layer.shared_x
        x = torch.randn(1 if one_row else M, layer.K, device="cuda").bfloat16()
        moved = active * weight_bytes(layer.N, layer.K) + 2 * (x.numel() + M * layer.N)
        row: dict[str, Any] = {"model": layer.model, "layer": layer.name, "tokens": count, "M": M}
        row |= {"experts": layer.experts, "active": round(active, 1), "N": layer.N, "K": layer.K}
        row["floor_us"] = round(moved / bandwidth * 1e6, 2)
        row |= measure_ours(libraries[count == 1], weights, chosen, x, rng)
        out = torch.empty(M, layer.N, dtype=torch.bfloat16, device="cuda")
        for name, launch in baselines(weights, x, out):
            try:
                for routing in chosen:
                    launch(routing)
                us = time_launches([lambda r=routing, f=launch: f(r) for routing in chosen], BUDGET)
                row[f"{name}_us"] = round(us, 2)
            except Exception as problem:  # what refuses a case is part of the table
                row |= {f"{name}_us": None, f"{name}_err": f"{type(problem).__name__}: {str(problem)[:160]}"}
        found.append(row)
        print(row, flush=True)
    return found


def build_one(layer: Layer, tokens: int, arch: str) -> float | str:
    """Compile in a process of its own; return the seconds it took, or why it failed."""
    start = time.perf_counter()
    try:
        find_library(layer.problem(tokens), arch)
    except Exception as error:  # CompileError does not pickle
        return f"{type(error).__name__}: {error}"
    return time.perf_counter() - start


def build(layers: Sequence[Layer], archs: Sequence[str], jobs: int) -> int:
    """Compile everything; return how many do not compile."""
    tasks = [(layer, tokens, arch) for layer in layers for tokens in (1, 2) for arch in archs]
    failures = 0
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(build_one, *task) for task in tasks]
        for (layer, tokens, arch), future in zip(tasks, futures, strict=True):
            result = future.result()
            failures += isinstance(result, str)
            text = result[:1000] if isinstance(result, str) else f"{result:.1f} s"
            form = "one token" if tokens == 1 else "more tokens"
            print(f"{layer.model} {layer.name}, {form}, {arch}: {text}", flush=True)
    return failures


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("build", "measure"))
    parser.add_argument(
        "--models", type=parse_words, default=",".join(MODELS), help=f"of {', '.join(MODELS)}"
    )
    parser.add_argument("--archs", type=parse_words, default="sm_90", help="to build for")
    parser.add_argument("--jobs", type=int, default=1, help="processes that build")
    parser.add_argument("--tokens", type=parse_rows, default="1,4,16,64,256,1024,4096", help="to measure")
    parser.add_argument("-o", "--output", type=Path, help="JSON")
    arguments = parser.parse_args()
    layers = [layer for name in arguments.models for layer in MODELS[name]]
    if arguments.command == "build":
        return int(build(layers, arguments.archs, arguments.jobs) > 0)
    if not torch.cuda.is_available():
        print("benchmarks.grouped_gemm measures on a GPU, and found none", file=sys.stderr)
        return 2
    torch.manual_seed(0)
    arch, bandwidth = device_arch(torch.device("cuda")).name, copy_bandwidth()
    rows: list[dict[str, Any]] = []
    for layer in layers:
        libraries = {one: find_library(layer.problem(1 if one else 2), arch) for one in (True, False)}
        rows += measure_layer(layer, arguments.tokens, libraries, bandwidth)
        torch.cuda.empty_cache()
    print(table(rows))
    if arguments.output:
        device = torch.cuda.get_device_properties(0).name
        record.write(arguments.output, rows, device=device, copy_bytes_per_s=bandwidth)
    return int(any(row["nvfp4_tvm_us"] is None for row in rows))


if __name__ == "__main__":
    sys.exit(main())
