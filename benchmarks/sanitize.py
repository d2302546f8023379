"""NVIDIA's compute-sanitizer on the kernels of one weight, every family: memory errors and races.

    python -m benchmarks.sanitize

For each tool and architecture it starts itself under the tool. The memory of every tensor is an allocation of its
own, so that the first byte beyond one is an error, and only this package's kernels are instrumented.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from benchmarks import record
from benchmarks.gemm_accuracy import BARS, Weight, exact_result, relative
from benchmarks.shapes import parse_shapes, parse_words
from nvfp4_tvm.codegen.toolkit import toolkit_roots
from nvfp4_tvm.schedules.base import MatmulProblem, MRange
from nvfp4_tvm.schedules.dispatch import kernels_for
from nvfp4_tvm.target import cuda_target
from nvfp4_tvm.torch_kernels import load_cuda_kernel
from nvfp4_tvm.torch_library import find_library

TOOLS = ("memcheck", "racecheck")
#: Nothing of it is a multiple of a tile.
SHAPE = "264x400"
#: Substring of the names of all our kernels (`nvfp4_tvm.codegen.matmul.host_name`).
KERNELS = "nvfp4_matmul"
#: What the tool prints first.
STARTED = "COMPUTE-SANITIZER"


def one_of_each(problem: MatmulProblem, arch: str) -> dict[str, int]:
    """Return a number of rows for each kernel: near the end of its range, and odd."""
    rows: dict[str, int] = {}
    for m_range, rule, kernel in kernels_for(problem, cuda_target(arch).target):
        high = m_range.low + 40 if m_range.high is None else m_range.high
        name = getattr(kernel, "name", rule.name)
        rows[name] = max(m_range.low, high - 1 + high % 2)
    return rows


def work(shape: tuple[int, int], dtype: str, arch: str) -> None:
    """Run every kernel once and compare it, in the process that the tool watches."""
    problem = MatmulProblem(*shape, x_dtype=dtype, out_dtype=dtype)
    library = find_library(problem, arch)
    weight = Weight(*shape, seed=0, narrow=True)
    kernel, _ = load_cuda_kernel(problem, arch)
    for name, M in one_of_each(problem, arch).items():
        x = torch.randn(M, shape[1], device="cuda").to(getattr(torch, dtype)) * 2**-6
        out = torch.full((M, shape[0]), torch.nan, dtype=x.dtype, device="cuda")
        kernel(x, weight.packed, None, None, out)
        torch.cuda.synchronize()
        error = relative(out, exact_result(x, weight, None, None, None))
        print(f"ran {name} with M={M}, {library.workspace_bytes(M)} bytes of workspace: error {error:.2e}")
        if not error <= 2 * BARS[dtype]:
            raise SystemExit(f"{name}: relative error {error:.3g}")


def sanitizer() -> Path:
    """Return the path of the tool."""
    places = [root / "bin" / "compute-sanitizer" for root in toolkit_roots()]
    found = shutil.which("compute-sanitizer") or next((str(path) for path in places if path.exists()), None)
    if found is None:
        raise SystemExit("compute-sanitizer is not on this machine: install the CUDA toolkit")
    return Path(found)


def run(command: list[str], timeout: float) -> tuple[str, int]:
    """Return the output of a command and its exit code, 124 if it takes too long."""
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=timeout,
            env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        )
    except subprocess.TimeoutExpired as error:
        output = error.stdout or b""
        text = output.decode(errors="replace") if isinstance(output, bytes) else output
        return f"{text}\nno end within {timeout} s", 124
    return done.stdout, done.returncode


def watch(tool: str, shape: str, dtype: str, arch: str, timeout: float) -> dict[str, object]:
    """Run `work` under a tool and return what it said."""
    under = [str(sanitizer()), "--tool", tool, "--error-exitcode", "9"]
    work = [sys.executable, "-m", "benchmarks.sanitize", "--work", shape, dtype, arch]
    start = time.perf_counter()
    text, code = run([*under, "--kernel-name", f"kns={KERNELS}", *work], timeout)
    if STARTED not in text and code != 124:
        # The option's name is not the same in all versions; without it everything is instrumented
        text, code = run([*under, *work], timeout)
    summary = re.findall(r"=+ ((?:ERROR|RACECHECK) SUMMARY: .*)", text)
    ran = re.findall(r"^ran (\S+) with M=(\d+)", text, re.MULTILINE)
    if code:
        print(text[-3000:])
    last = text.strip().splitlines()[-1:] or ["no output"]
    return {
        "tool": tool,
        "arch": arch,
        "shape": shape,
        "dtype": dtype,
        "kernels": [f"{name}, M={M}" for name, M in ran],
        "exit_code": code,
        "summary": (summary or last)[-1],
        "seconds": round(time.perf_counter() - start, 1),
    }


def main() -> int:
    """Run the command line; return 1 if a tool found something or could not run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--tools", type=parse_words, default=",".join(TOOLS))
    parser.add_argument("--archs", type=parse_words, default="sm_90,sm_89", help="to compile for")
    parser.add_argument("--shape", default=SHAPE, help="NxK")
    parser.add_argument("--dtypes", type=parse_words, default="bfloat16")
    parser.add_argument("--timeout", type=float, default=300, help="seconds for each")
    parser.add_argument("-o", "--output", type=Path, default=record.RESULTS / "sanitizer_h200.json")
    arguments = parser.parse_args()
    if arguments.work:
        shape, dtype, arch = arguments.work
        work(parse_shapes(shape)[0], dtype, arch)
        return 0
    sanitizer()  # before anything is compiled
    N, K = parse_shapes(arguments.shape)[0]
    runs = list(itertools.product(arguments.archs, arguments.dtypes, arguments.tools))
    for arch, dtype in dict.fromkeys((arch, dtype) for arch, dtype, _ in runs):
        # Compiled here: under the tools everything is slow
        find_library(MatmulProblem(N, K, MRange(), dtype, dtype), arch)
    rows = []
    # All at once: each waits for its tool most of the time
    with ThreadPoolExecutor(len(runs)) as pool:
        futures = [
            pool.submit(watch, tool, arguments.shape, dtype, arch, arguments.timeout)
            for arch, dtype, tool in runs
        ]
        for future in futures:
            rows.append(future.result())
            print(rows[-1], flush=True)
            record.write(arguments.output, rows)
    return int(any(row["exit_code"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
