"""Speed of the CUDA repack beside a copy of the same bytes, and whether it makes the same bytes as the CPU.

    python benchmarks/repack_gpu.py [--json benchmarks/results/repack_gpu_NAME.json]

Each figure is the median over replays of a CUDA graph that goes once through a ring of weights larger than four
times the L2; the copy is ``cudaMemcpyAsync`` of as many bytes on the device, in a graph of the same kind.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.record import write  # noqa: E402
from nvfp4_tvm import layout  # noqa: E402
from nvfp4_tvm.codegen.repack import build_repack  # noqa: E402
from nvfp4_tvm.target import resolve_target  # noqa: E402

SHAPES = {
    "31B gate_up": (43008, 5376),
    "31B down": (5376, 21504),
    "8B gate_up": (28672, 4096),
    "8B qkv": (6144, 4096),
}
REPLAYS = 20


def median_seconds(calls: list[Callable[[], object]]) -> float:
    """Median seconds a call of a graph of all ``calls``."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = []
    for _ in range(REPLAYS + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / len(calls))
    return statistics.median(times[3:])


def measure(name: str, N: int, K: int) -> dict[str, object]:
    l2 = torch.cuda.get_device_properties(0).L2_cache_size
    size = N * K * 9 // 16
    ring = max(2, -(-4 * l2 // size))
    function = build_repack(N, K, 1, resolve_target("auto").target).function
    generator = torch.Generator("cuda").manual_seed(0)

    def random(*shape: int, high: int = 256) -> torch.Tensor:
        return torch.randint(0, high, shape, dtype=torch.uint8, device="cuda", generator=generator)

    rows = torch.tensor([0.01], device="cuda")
    calls, copies, sets = [], [], []
    for _ in range(ring):
        source = random(N, K // 2), random(N, K // 16, high=0x7F), rows
        target = (
            torch.empty(layout.words_shape(N, K), dtype=torch.uint32, device="cuda"),
            torch.empty(layout.scales_shape(N, K), dtype=torch.uint32, device="cuda"),
            torch.empty(layout.global_scale_shape(N), device="cuda"),
        )
        flat, copy = random(size), torch.empty(size, dtype=torch.uint8, device="cuda")
        sets.append((source, target))
        calls.append(lambda arrays=(*source, *target): function(*arrays))
        copies.append(lambda to=copy, of=flat: to.copy_(of))
    seconds, copy_seconds = median_seconds(calls), median_seconds(copies)
    (codes, scales, _), found = sets[-1]
    expected = layout.pack(codes.cpu().numpy(), scales.cpu().numpy(), np.float32(0.01))
    for tensor, field in zip(found, ("words", "scales", "global_scale"), strict=True):
        assert tensor.cpu().numpy().tobytes() == getattr(expected, field).tobytes(), (name, field)
    return {
        "shape": name,
        "N": N,
        "K": K,
        "ring": ring,
        "us": round(seconds * 1e6, 2),
        "gb_per_s": round(size / seconds / 1e9, 1),
        "copy_us": round(copy_seconds * 1e6, 2),
        "copy_gb_per_s": round(size / copy_seconds / 1e9, 1),
        "of_copy": round(copy_seconds / seconds, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json")
    arguments = parser.parse_args()
    rows = []
    for name, (N, K) in SHAPES.items():
        rows.append(measure(name, N, K))
        print(rows[-1], flush=True)
    if arguments.json:
        write(Path(arguments.json), rows)


if __name__ == "__main__":
    main()
