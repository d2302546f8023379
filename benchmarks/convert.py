"""Speed of the repack and of quantizing on this machine's CPU, beside a copy of the same bytes and other ways.

    python benchmarks/convert.py [--json benchmarks/results/convert_NAME.json]

Weights lie in a mapped safetensors file that the system holds in memory. The copy is ``memcpy`` by as many threads
as there are cores, from the same map to memory that was written before. All contenders take turns, and the fastest
of their runs counts: on a machine that does other things as well, slower ones say how busy it was. How busy it
was is recorded too: the load average before the first run, which a table shows.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, get_args

import ml_dtypes
import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import torch_baseline  # noqa: E402
from benchmarks.record import write  # noqa: E402
from nvfp4_tvm import layout, numerics, packing, quantizing  # noqa: E402
from nvfp4_tvm.buffers import Buffers  # noqa: E402
from nvfp4_tvm.checkpoint.storage import SafetensorsFile  # noqa: E402
from nvfp4_tvm.checkpoint.writer import SafetensorsWriter  # noqa: E402
from nvfp4_tvm.runtime.threads import cores  # noqa: E402
from nvfp4_tvm.scaling import Arithmetic, Method  # noqa: E402

#: gate_up of a 31B model, and a quarter of it for quantizing: both are beyond any cache.
N, K = 43008, 5376
ROUNDS = 15
#: Contenders that take seconds run less often.
SLOW_ROUNDS = 2


def copier(arrays: list[np.ndarray]) -> Callable[[], None]:
    """Return a copy of arrays by all cores, to memory that has its pages already."""
    pool, parts = ThreadPoolExecutor(cores()), []
    for array in arrays:
        target = np.ones(array.nbytes, np.uint8)
        step = -(-array.nbytes // cores())
        for begin in range(0, array.nbytes, step):
            size = min(step, array.nbytes - begin)
            parts.append((target, target.ctypes.data + begin, array.ctypes.data + begin, size))
    # The copies keep their targets alive; ctypes lets go of the interpreter lock.
    return lambda: list(pool.map(lambda part: ctypes.memmove(*part[1:]), parts)) and None


def best_seconds(contenders: dict[str, Callable[[], object]], slow: set[str]) -> dict[str, float]:
    """Time each contender in turns; return the fastest seconds of each."""
    best = dict.fromkeys(contenders, float("inf"))
    for turn in range(ROUNDS + 1):
        for name, call in contenders.items():
            if name in slow and turn >= SLOW_ROUNDS:
                continue
            start = time.perf_counter()
            call()
            if turn:  # the first compiles, and touches memory
                best[name] = min(best[name], time.perf_counter() - start)
    return best


def rows_of(what: str, nbytes: int, best: dict[str, float]) -> list[dict[str, Any]]:
    return [
        {
            "what": what,
            "contender": name,
            "bytes": nbytes,
            "seconds": round(seconds, 5),
            "gb_per_s": round(nbytes / seconds / 1e9, 2),
            "of_copy": round(best["memcpy"] / seconds, 3),
        }
        for name, seconds in best.items()
    ]


def mapped(folder: Path, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Write arrays to a safetensors file and return them mapped."""
    with SafetensorsWriter(folder, "weights", {n: (a.dtype, a.shape) for n, a in arrays.items()}) as writer:
        for name, array in arrays.items():
            writer.write(name, array)
    file = SafetensorsFile(folder / "weights.safetensors")
    return {name: file.array(name) for name in arrays}


def repack(folder: Path) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    arrays = mapped(
        folder,
        {
            "codes": rng.integers(0, 256, (N, K // 2), np.uint8),
            "scales": rng.integers(0, 0x7F, (N, K // 16), np.uint8),
        },
    )
    codes, scales = arrays["codes"], arrays["scales"]
    buffers, scale = Buffers(), np.float32(0.01)
    tensors = [
        torch.frombuffer(bytearray(array.data), dtype=torch.uint8).view(array.shape)
        for array in (codes, scales)
    ]
    expected, found = (
        layout.pack(codes, scales, scale),
        packing.pack([codes], [scales], [scale], buffers=buffers),
    )
    for field in ("words", "scales", "global_scale"):
        assert getattr(found, field).tobytes() == getattr(expected, field).tobytes(), field
    for tensor, field in zip(torch_baseline.pack(*tensors), ("words", "scales"), strict=True):
        assert tensor.numpy().tobytes() == getattr(expected, field).tobytes(), field
    contenders = {
        "memcpy": copier([codes, scales]),
        "nvfp4_tvm": lambda: packing.pack([codes], [scales], [scale], buffers=buffers),
        "NumPy": lambda: layout.pack(codes, scales, scale),
        "PyTorch": lambda: torch_baseline.pack(*tensors),
    }
    return rows_of("repack", codes.nbytes + scales.nbytes, best_seconds(contenders, {"NumPy", "PyTorch"}))


def quantize(folder: Path) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    noise = (0.02 * rng.standard_normal((N // 4, K), np.float32)).astype(ml_dtypes.bfloat16)
    weight = mapped(folder, {"weight": noise})["weight"]
    largest, rows = numerics.amax(weight), []
    for arithmetic, method in itertools.product(get_args(Arithmetic), get_args(Method)):
        compiled = partial(
            quantizing.quantize, weight, largest, arithmetic=arithmetic, method=method, buffers=Buffers()
        )
        reference = partial(numerics.quantize, weight, arithmetic=arithmetic, method=method)
        for found, expected in zip(compiled(), reference(), strict=False):
            assert np.array_equal(found, expected), (arithmetic, method)
        contenders = {
            "memcpy": copier([weight]),
            "nvfp4_tvm": compiled,
            "nvfp4_tvm, with the pass for the largest magnitude": lambda f=compiled: (
                numerics.amax(weight),
                f(),
            ),
            "NumPy": reference,
        }
        what = f"quantize, {arithmetic}, {method}"
        rows += rows_of(what, weight.nbytes, best_seconds(contenders, {"NumPy"}))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json")
    arguments = parser.parse_args()
    rows, load = [], round(os.getloadavg()[0], 2)
    for part in (repack, quantize):
        with tempfile.TemporaryDirectory() as folder:
            found = part(Path(folder))
        rows += found
        for row in found:
            print(row, flush=True)
    if arguments.json:
        write(Path(arguments.json), rows, load_before=load)


if __name__ == "__main__":
    main()
