"""Speed of the CUDA repack beside a copy of the same bytes, and whether it makes the same bytes as the CPU.

    python benchmarks/repack_gpu.py [--json benchmarks/results/repack_gpu_NAME.json]
    python benchmarks/repack_gpu.py --build sm_90    compile into the kernel cache, on a machine without a GPU too

Each figure is the median over replays of a CUDA graph that goes once through a ring of weights larger than four
times the L2; the copy is ``cudaMemcpyAsync`` of as many bytes on the device, in a graph of the same kind. All
configurations of the kernel are measured; the last lines say which is the fastest, and whether that is the one
that the package uses. ``pack`` is `nvfp4_tvm.torch.pack` as users call it: checks of the values, allocation and
launch, median of calls on one weight.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.record import write  # noqa: E402
from nvfp4_tvm import layout, packing  # noqa: E402
from nvfp4_tvm.codegen.repack import build_repack  # noqa: E402
from nvfp4_tvm.schedules.repack_kernel import CONFIGS, Config  # noqa: E402
from nvfp4_tvm.target import cuda_target, resolve_target  # noqa: E402
from nvfp4_tvm.torch import pack  # noqa: E402

SHAPES = {
    "31B gate_up": (43008, 5376),
    "31B down": (5376, 21504),
    "8B gate_up": (28672, 4096),
    "8B qkv": (6144, 4096),
    "K = 90 * 32": (23040, 2880),
}
#: Of the copy's speed that the kernel is to reach.
TARGET = 0.8
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


def pack_seconds(source: tuple[torch.Tensor, ...]) -> float:
    """Median seconds of `nvfp4_tvm.torch.pack`, which waits for the device."""
    times = []
    for _ in range(REPLAYS + 3):
        torch.cuda.synchronize()
        start = time.perf_counter()
        pack(*source)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[3:])


def measure(name: str, N: int, K: int) -> list[dict[str, object]]:
    l2 = torch.cuda.get_device_properties(0).L2_cache_size
    size = N * K * 9 // 16
    ring = max(2, -(-4 * l2 // size))
    generator = torch.Generator("cuda").manual_seed(0)

    def random(*shape: int, high: int = 256) -> torch.Tensor:
        return torch.randint(0, high, shape, dtype=torch.uint8, device="cuda", generator=generator)

    row_scale = torch.tensor([0.01], device="cuda")
    sources = [(random(N, K // 2), random(N, K // 16, high=0x7F), row_scale) for _ in range(ring)]
    targets = [
        (
            torch.empty(layout.words_shape(N, K), dtype=torch.uint32, device="cuda"),
            torch.empty(layout.scales_shape(N, K), dtype=torch.uint32, device="cuda"),
            torch.empty(layout.global_scale_shape(N), device="cuda"),
        )
        for _ in range(ring)
    ]
    flat = [(random(size), torch.empty(size, dtype=torch.uint8, device="cuda")) for _ in range(ring)]
    copy_seconds = median_seconds([lambda to=to, of=of: to.copy_(of) for of, to in flat])
    codes, scales, _ = (tensor.cpu().numpy() for tensor in sources[-1])
    expected = packing.pack([codes], [scales], [np.float32(0.01)])
    rows = []
    for config in CONFIGS:
        function = build_repack(N, K, resolve_target("auto").target, config).function
        for tensor in targets[-1]:
            tensor.view(torch.uint8).fill_(0x55)
        calls = [
            lambda arrays=(*source, *target), f=function: f(*arrays)
            for source, target in zip(sources, targets, strict=True)
        ]
        seconds = median_seconds(calls)
        for tensor, field in zip(targets[-1], ("words", "scales", "global_scale"), strict=True):
            assert tensor.cpu().numpy().tobytes() == getattr(expected, field).tobytes(), (name, config, field)
        rows.append(
            {
                "shape": name,
                "N": N,
                "K": K,
                "config": asdict(config),
                "ring": ring,
                "us": round(seconds * 1e6, 2),
                "gb_per_s": round(size / seconds / 1e9, 1),
                "copy_us": round(copy_seconds * 1e6, 2),
                "copy_gb_per_s": round(size / copy_seconds / 1e9, 1),
                "of_copy": round(copy_seconds / seconds, 3),
                "pack_us": round(pack_seconds(sources[-1]) * 1e6, 1) if config == Config() else None,
            }
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--build", metavar="ARCH")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    if arguments.build:
        for config, (N, K) in itertools.product(CONFIGS, SHAPES.values()):
            build_repack(N, K, cuda_target(arguments.build).target, config)
        return
    rows = [row for name, (N, K) in SHAPES.items() for row in measure(name, N, K)]
    if arguments.json:
        write(Path(arguments.json), rows)
    means = {
        config: statistics.geometric_mean(row["of_copy"] for row in rows if row["config"] == asdict(config))
        for config in CONFIGS
    }
    for config, mean in sorted(means.items(), key=lambda item: -item[1]):
        of_copy = [row["of_copy"] for row in rows if row["config"] == asdict(config)]
        used = ", the one in use" if config == Config() else ""
        print(f"{config}{used}: {mean:.3f} of the copy's speed, {min(of_copy):.3f} at least")
    used = [row["of_copy"] for row in rows if row["config"] == asdict(Config())]
    print(f"{'reached' if min(used) >= TARGET else 'MISSED'}: {TARGET} of the copy's speed")


if __name__ == "__main__":
    main()
