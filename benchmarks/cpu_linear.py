"""Linear layers on this CPU: the NVFP4 kernels beside torch in bfloat16 and float32.

    python benchmarks/cpu_linear.py

Warm calls use one weight again and again, so it stays in whatever cache it fits; cold calls rotate over
copies of it that together exceed any cache. The contenders take turns, round by round, so that a busy
machine disturbs all of them alike; a figure is over the calls of all rounds. Where other programs run at the
same time, the minimum says more than the median.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import record
import torch
import tvm
import typer
from rich.console import Console
from rich.table import Table

from nvfp4_tvm import layout, numerics
from nvfp4_tvm.schedules.base import MatmulProblem, MRange
from nvfp4_tvm.schedules.cpu_gemm import CPUGemm
from nvfp4_tvm.schedules.cpu_gemm_amx import CPUGemmAMX
from nvfp4_tvm.schedules.dispatch import dispatch
from nvfp4_tvm.target import resolve_target

#: Between contenders: longer than the thread pools of torch and TVM spin for work before they sleep.
SETTLE_S = 0.3
WARM_UP_CALLS = 3
#: What `dispatch` chooses by M, and one family for every M.
FAMILIES: dict[str, Callable[[MatmulProblem, tvm.target.Target], tvm.tirx.PrimFunc | None]] = {
    "table": dispatch,
    CPUGemm.name: CPUGemm().apply,
    CPUGemmAMX.name: CPUGemmAMX().apply,
}


class Contender:
    """A linear layer with its copies of the weight."""

    def __init__(self, name: str, weight_bytes: int, copies: int, call: Callable[[int, int], object]):
        self.name, self.weight_bytes, self.copies, self.call = name, weight_bytes, copies, call

    def times(self, M: int, cold: bool, seconds: float) -> list[float]:
        """Seconds of single calls, measured for about ``seconds``."""
        copies = self.copies if cold else 1
        for copy in range(WARM_UP_CALLS):
            self.call(M, copy % copies)
        result: list[float] = []
        end = time.perf_counter() + seconds
        while (start := time.perf_counter()) < end:
            self.call(M, len(result) % copies)
            result.append(time.perf_counter() - start)
        return result


def torch_contender(dtype: torch.dtype, weight: np.ndarray, rows: list[int], cold_bytes: int) -> Contender:
    first = torch.from_numpy(weight).to(dtype)
    copies = -(-cold_bytes // first.nbytes)
    weights = [first.clone() for _ in range(copies)]
    x = {M: torch.randn(M, weight.shape[1]).to(dtype) for M in rows}
    call = lambda M, copy: torch.nn.functional.linear(x[M], weights[copy])  # noqa: E731
    return Contender(f"torch {str(dtype).removeprefix('torch.')}", first.nbytes, copies, call)


def nvfp4_contender(
    dtype: str,
    family: str,
    packed: layout.PackedWeight,
    rows: list[int],
    cold_bytes: int,
    target: tvm.target.Target,
) -> Contender | None:
    """Return the kernels that ``family``, a key of `FAMILIES`, chooses; None where it has none."""
    function = FAMILIES[family](MatmulProblem(packed.N, packed.K, MRange(), dtype, dtype), target)
    if function is None:
        return None
    kernel = tvm.compile(function, target=target)[str(function.attrs["global_symbol"])]
    copies = -(-cold_bytes // packed.nbytes)
    arrays = (packed.words, packed.scales, packed.global_scale)
    weights = [[tvm.runtime.tensor(array) for array in arrays] for _ in range(copies)]
    x = {M: tvm.runtime.tensor(np.random.standard_normal((M, packed.K)).astype(dtype)) for M in rows}
    out = {M: tvm.runtime.empty((M, packed.N), dtype) for M in rows}
    call = lambda M, copy: kernel(x[M], *weights[copy], out[M])  # noqa: E731
    return Contender(f"nvfp4 {family}, {dtype}", packed.nbytes, copies, call)


def quantized(N: int, K: int) -> tuple[layout.PackedWeight, np.ndarray]:
    """Return a random weight packed, and as the float32 numbers it stands for."""
    weight = np.random.default_rng(0).standard_normal((N, K)).astype(np.float32)
    codes, scales, global_scale = numerics.quantize(weight)
    exact = numerics.dequantize(codes, scales, global_scale)
    return layout.pack(codes, scales, float(global_scale)), np.asarray(exact, np.float32)


def main(
    n: Annotated[int, typer.Option(help="Rows of the weight.")] = 4096,
    k: Annotated[int, typer.Option(help="Columns of the weight.")] = 4096,
    rows: Annotated[str, typer.Option(help="Rows of activations, comma separated.")] = "1,8,64",
    threads: Annotated[int, typer.Option(help="Threads for every contender.")] = 2,
    rounds: Annotated[int, typer.Option(help="Turns that every contender gets.")] = 5,
    seconds: Annotated[float, typer.Option(help="Length of a turn.")] = 0.5,
    cold_mb: Annotated[int, typer.Option(help="Megabytes of weight copies for cold calls.")] = 1200,
    output: Annotated[str, typer.Option(help="JSON file; empty for one named by the CPU.")] = "",
) -> None:
    """Print a table of milliseconds a call and write the figures as JSON."""
    console = Console(width=max(120, Console().width))
    torch.set_num_threads(threads)
    # Read when TVM starts its pool. Its own default is half of the processors, taking them for hyperthreads;
    # and it binds the calling thread to a processor, which torch's threads would then inherit and share.
    os.environ.update(TVM_NUM_THREADS=str(threads), TVM_BIND_THREADS="0")
    if (started := tvm.get_global_func("runtime.NumThreads")()) != threads:
        raise typer.BadParameter(f"TVM runs {started} threads, expected {threads}")
    target = resolve_target("llvm").target
    Ms = [int(M) for M in rows.split(",")]
    packed, exact = quantized(n, k)
    cold = cold_mb * 10**6
    contenders = [torch_contender(dtype, exact, Ms, cold) for dtype in (torch.float32, torch.bfloat16)]
    for family in FAMILIES:
        for dtype in ("float32", "bfloat16"):
            contender = nvfp4_contender(dtype, family, packed, Ms, cold, target)
            if contender is not None:
                contenders.append(contender)
    cases = [(M, is_cold) for M in Ms for is_cold in (False, True)]
    samples: dict[tuple[int, bool, str], list[float]] = {}
    with torch.inference_mode(), console.status("measuring"):
        for _ in range(rounds):
            for M, is_cold in cases:
                for contender in contenders:
                    time.sleep(SETTLE_S)
                    times = contender.times(M, is_cold, seconds)
                    samples.setdefault((M, is_cold, contender.name), []).extend(times)

    table = Table(
        title=f"linear [M, {k}] x [{n}, {k}], {threads} threads, milliseconds a call: minimum / median"
    )
    table.add_column("", no_wrap=True)
    figures = []
    for M, is_cold in cases:
        table.add_column(f"M={M} {'cold' if is_cold else 'warm'}", justify="right")
    for contender in contenders:
        cells = []
        for M, is_cold in cases:
            milliseconds = np.array(samples[M, is_cold, contender.name]) * 1e3
            figure = {
                "contender": contender.name,
                "M": M,
                "N": n,
                "K": k,
                "cold": is_cold,
                "weight_copies": contender.copies if is_cold else 1,
                "weight_bytes": contender.weight_bytes,
                "calls": len(milliseconds),
                "min_ms": round(float(milliseconds.min()), 4),
                "p10_ms": round(float(np.percentile(milliseconds, 10)), 4),
                "median_ms": round(float(np.median(milliseconds)), 4),
            }
            figures.append(figure)
            cells.append(f"{figure['min_ms']:.2f} / {figure['median_ms']:.2f}")
        table.add_row(contender.name, *cells)
    console.print(table)

    cpu = str(target.attrs.get("mcpu", platform.machine()))
    path = Path(output) if output else record.RESULTS / f"cpu_linear_{cpu}.json"
    record.write(path, figures, llvm_cpu=cpu, threads=threads)
    console.print(f"written: {path}")


if __name__ == "__main__":
    typer.run(main)
