"""How far the compiled matmuls are from float64, on a GPU.

    python -m benchmarks.gemm_accuracy --jobs 16

Two lists: every weight of `benchmarks.shapes` at every number of rows, and random problems with every epilogue and
with shapes that fit no tile. Each is run as compiled for this card and as compiled for sm_89.

Weights have every code, every finite non-negative E4M3 scale byte, and global scales between 1e-6 and 1e3,
drawn a row. Activations have outliers ten thousand times the size of the rest. Float16 ends at 65504 and
thins out below 6e-5, so for it the global scales of one weight lie within a factor of 16 somewhere between
1e-6 and 1e3, and activations are scaled to results of about 16. Inputs and outputs lie between NaNs, and
the memory that becomes the workspace is filled with NaNs: what is read beyond an end, written there, or
left unwritten shows. The same call must give the same bits three times.

``err`` is ``||out - exact|| / ||exact||``. For ``err_rows`` each column is first divided by the size of its
elements in 64 rows, so that rows of the weight with a small global scale count as much as others.
``rounding`` is ``err`` of the exact product, rounded once: where few elements make up the norm it can
exceed the bar of `BARS` by itself, and a result passes that is within `SLACK` of it.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import record
from benchmarks.peer import compile_library, translated
from benchmarks.shapes import parse_rows, parse_shapes, parse_words
from nvfp4_tvm.schedules.base import MatmulProblem, MRange
from nvfp4_tvm.torch import decode, pack
from nvfp4_tvm.torch_device import device_arch
from nvfp4_tvm.torch_kernels import CUDAKernel, load_cuda_kernel
from nvfp4_tvm.torch_library import library_path

#: Largest relative error by the dtype of the output: its rounding (1.66e-3 and 2.1e-4 rms) and the
#: accumulation, in which tensor cores cut off what does not fit float32 (7e-6 at K = 6320).
BARS = {"bfloat16": 1.70e-3, "float16": 2.2e-4, "float32": 5e-5}
#: Times the error of rounding the exact product once.
SLACK = 1.01

EPILOGUES: tuple[dict[str, Any], ...] = (
    {},
    {"bias": True},
    {"residual": True},
    {"activation": "silu_mul"},
    {"bias": True, "residual": True},
    {"bias": True, "residual": True, "activation": "silu_mul"},
    {"out_dtype": "float32"},
)
SPECIAL_N, SPECIAL_K, SPECIAL_M = (8, 24, 100), (16, 48, 2880), (1, 3, 17, 33, 100, 777)
GLOBAL_SCALES = (1e-6, 1e3)
#: Ratio of the global scales of a weight for float16.
NARROW = 16.0
OUTLIER = 1e4
#: float64 products are made for at most this many rows of a case, the last ones among them.
REFERENCE_ROWS = 1024
#: Rows that tell the size of a column's elements.
SIZE_ROWS = 64
#: Elements of NaN before and after each operand; a multiple of 16 bytes in every dtype.
GUARD = 4096
#: What a float16 result is scaled to: 65504 is its end, and a product of two of them must fit.
FLOAT16_SIZE = 16.0


@dataclass(frozen=True)
class Case:
    """A problem with the architecture to compile it for; M is the rows to run it with."""

    problem: MatmulProblem
    M: int
    arch: str
    seed: int


def random_cases(count: int, archs: list[str], seed: int = 0) -> Iterator[Case]:
    """Draw problems, each for all architectures, each for its M alone."""
    rng = np.random.default_rng(seed)
    specials = list(itertools.product(SPECIAL_N, SPECIAL_K, SPECIAL_M))
    for i in range(count):
        # Half of them are of special numbers: every combination at least once in a hundred problems
        if i % 2:
            N, K, M = specials[(i // 2) % len(specials)]
        else:
            N = int(np.exp(rng.uniform(np.log(1), np.log(6000))))
            K = 16 * int(np.exp(rng.uniform(np.log(1), np.log(512))))
            M = int(np.exp(rng.uniform(np.log(1), np.log(1200))))
        epilogue = dict(EPILOGUES[int(rng.integers(len(EPILOGUES)))])
        dtype = ("bfloat16", "float16")[i // 2 % 2]
        if "activation" in epilogue:
            N = -(-N // 16) * 16
        problem = MatmulProblem(N, K, MRange(M, M), dtype, **{"out_dtype": dtype, **epilogue})
        for arch in archs:
            yield Case(problem, M, arch, i)


def shape_cases(
    shapes: list[tuple[int, int]], rows: list[int], dtypes: list[str], archs: list[str]
) -> Iterator[Case]:
    """List every shape with every M, for kernels that take every M."""
    for (N, K), dtype, arch, M in itertools.product(shapes, dtypes, archs, rows):
        yield Case(MatmulProblem(N, K, x_dtype=dtype, out_dtype=dtype), M, arch, N + K)


# ----------------------------------------------------------------------------------------
# Operands


class Weight:
    """A random weight, packed, and its exact values without the global scales."""

    def __init__(self, N: int, K: int, seed: int, narrow: bool = False, device: str = "cuda") -> None:
        generator = torch.Generator(device).manual_seed(seed)
        options = {"generator": generator, "device": device}
        codes = torch.randint(0, 256, (N, K // 2), dtype=torch.uint8, **options)
        scales = torch.randint(0, 0x7F, (N * K // 16,), dtype=torch.uint8, **options)
        # All bytes, the largest first: a small weight is not all zeros
        every = torch.arange(0x7E, -1, -1, dtype=torch.uint8, device=device)[: scales.numel()]
        scales[: every.numel()] = every
        scales = scales[torch.randperm(scales.numel(), **options)].view(N, K // 16)
        low, high = np.log(GLOBAL_SCALES)
        if narrow:
            low = float(np.random.default_rng(seed).uniform(low, high - np.log(NARROW)))
            high = low + float(np.log(NARROW))
        self.rows = torch.exp(torch.rand(N, **options) * (high - low) + low)
        self.packed = pack(codes, scales, self.rows)
        self.exact = decode(codes, scales).double()


def guarded(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a copy that lies between NaNs, and the memory around it."""
    buffer = torch.full((tensor.numel() + 2 * GUARD,), torch.nan, dtype=tensor.dtype, device=tensor.device)
    inside = buffer[GUARD : GUARD + tensor.numel()].view(tensor.shape)
    inside.copy_(tensor)
    return inside, buffer


def activations(M: int, weight: Weight, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Normal numbers with outliers in some columns, scaled for float16 to results of `FLOAT16_SIZE`."""
    K, device = weight.exact.shape[1], weight.exact.device
    generator = torch.Generator(device).manual_seed(seed)
    x = torch.randn(M, K, generator=generator, dtype=torch.float64, device=device)
    x[:, torch.randint(0, K, (max(1, K // 64),), generator=generator, device=device)] *= OUTLIER
    if dtype == torch.float16:
        size = (x[:SIZE_ROWS] @ weight.exact.T * weight.rows).abs().amax() / 4
        x *= 2.0 ** torch.floor(torch.log2(FLOAT16_SIZE / size))
    return x.to(dtype)


def exact_result(
    x: torch.Tensor,
    weight: Weight,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    activation: str | None,
) -> torch.Tensor:
    """Return the result in float64."""
    value = x.double() @ weight.exact.T * weight.rows.double()
    value = value if bias is None else value + bias.double()
    if activation == "silu_mul":
        gate, up = value.unflatten(1, (-1, 2, 8)).unbind(2)
        value = (torch.nn.functional.silu(gate) * up).flatten(1)
    return value if residual is None else value + residual.double()


# ----------------------------------------------------------------------------------------
# The check


def relative(got: torch.Tensor, exact: torch.Tensor) -> float:
    """Frobenius norm of the difference over that of the exact matrix."""
    return float((got.double() - exact).norm() / exact.norm().clamp_min(1e-300))


def relative_by_row(got: torch.Tensor, exact: torch.Tensor, size: torch.Tensor) -> float:
    """Root mean square of the differences in units of ``size``, one a column; columns of zeros do not count."""
    errors = ((got.double() - exact) / size)[:, size > 0]
    return float(errors.square().mean().sqrt()) if errors.numel() else 0.0


def check(case: Case, kernel: CUDAKernel, weight: Weight) -> dict[str, Any]:
    """Run a case and compare."""
    torch.manual_seed(case.seed)
    problem, M = case.problem, case.M
    dtype, out_dtype = getattr(torch, problem.x_dtype), getattr(torch, problem.out_dtype)
    many = activations(max(M, SIZE_ROWS), weight, dtype, case.seed)
    x, _ = guarded(many[:M])
    many = many[:SIZE_ROWS]
    size = exact_result(many, weight, None, None, None).square().mean(dim=0).sqrt()
    bias = residual = None
    if problem.bias:
        bias, _ = guarded((torch.randn_like(size) * size).to(dtype))
    size = exact_result(many, weight, bias, None, problem.activation).square().mean(dim=0).sqrt()
    if problem.residual:
        residual, _ = guarded((torch.randn(M, problem.out_N, device=x.device) * size).to(out_dtype))
    rows = torch.arange(max(0, M - REFERENCE_ROWS), M, device=x.device)
    picked = None if residual is None else residual[rows]
    exact = exact_result(x[rows], weight, bias, picked, problem.activation)

    bits = []
    for _ in range(3):
        out, around = guarded(torch.full((M, problem.out_N), torch.nan, dtype=out_dtype, device=x.device))
        # The allocator gives this memory out again as the workspace
        junk = torch.full((kernel.workspace_bytes(M),), 0xFF, dtype=torch.uint8, device=x.device)
        del junk
        kernel(x, weight.packed, bias, residual, out)
        bits.append(out.clone())
        outside = torch.cat((around[:GUARD], around[GUARD + out.numel() :]))
        if not outside.isnan().all():
            return {"failure": "wrote outside of the output"}
    got = bits[0][rows]
    figures = {
        "err": relative(got, exact),
        "err_rows": relative_by_row(got, exact, size),
        "rounding": relative(exact.to(out_dtype), exact),
        "rounding_rows": relative_by_row(exact.to(out_dtype), exact, size),
        "reproducible": all(
            torch.equal(bits[0].view(torch.uint8), other.view(torch.uint8)) for other in bits
        ),
    }
    bar = BARS[problem.out_dtype]
    failures = [
        f"{name} {figures[name]:.3g}"
        for name, rounding in (("err", "rounding"), ("err_rows", "rounding_rows"))
        # not <=, so that NaN fails
        if not figures[name] <= max(bar, SLACK * figures[rounding])
    ]
    if not bits[0].isfinite().all():
        failures.append("not finite")
    if not figures["reproducible"]:
        failures.append("not reproducible")
    return {**figures, "failure": ", ".join(failures) or None}


def as_row(case: Case, figures: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON of a case."""
    problem = {key: value for key, value in asdict(case.problem).items() if key not in ("M", "dynamic")}
    which = "shapes" if case.problem.M == MRange() else "random"
    rounded = {
        key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in figures.items()
    }
    return {"list": which, "arch": case.arch, **problem, "M": case.M, **rounded}


def _ratio(row: dict[str, Any]) -> float:
    """Error over that of rounding once; 1 where there is neither, NaN where there is no figure."""
    err, rounding = row.get("err", np.nan), row.get("rounding", np.nan)
    return 1.0 if err == rounding else err / max(rounding, 1e-30)


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the worst figures by list, architecture and dtypes."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["list"], row["arch"], row["x_dtype"], row["out_dtype"]), []).append(row)
    return [
        dict(zip(("list", "arch", "x_dtype", "out_dtype"), key, strict=True))
        | {
            "cases": len(group),
            "failures": sum(row["failure"] is not None for row in group),
            "reproducible": sum(row.get("reproducible", False) for row in group),
            # NaN must not hide behind a maximum
            "worst_err": float(np.max([row.get("err", np.nan) for row in group])),
            "worst_err_rows": float(np.max([row.get("err_rows", np.nan) for row in group])),
            "worst_rounding": float(np.max([row.get("rounding", np.nan) for row in group])),
            "worst_over_rounding": float(np.max([_ratio(row) for row in group])),
        }
        for key, group in sorted(groups.items())
    ]


# ----------------------------------------------------------------------------------------
# Building and running


def compiled(cases: list[Case], jobs: int) -> Iterator[tuple[list[Case], str | None]]:
    """Compile each library once, in parallel; return the cases of each as it is ready, or why it is not.

    Libraries that are on disk already come first, and need no process unless the driver must translate them.
    """
    waiting: dict[tuple[MatmulProblem, str], list[Case]] = {}
    for case in cases:
        waiting.setdefault((case.problem, case.arch), []).append(case)
    ready = []
    for key in list(waiting):
        path = library_path(*key)
        if path is not None and path.exists() and not translated(key[1]):
            ready.append(waiting.pop(key))
    # A fork would share TVM's and CUDA's state
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"))
    try:
        futures = {pool.submit(compile_library, *key): group for key, group in waiting.items()}
        for group in ready:
            yield group, None
        for future in as_completed(futures):
            result = future.result()
            yield futures.pop(future), result if isinstance(result, str) else None
    finally:
        pool.shutdown(cancel_futures=True)


def main() -> None:
    """Check everything, print what fails, and write the figures as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", type=parse_shapes, default="all", help="NxK or names, all, or empty")
    parser.add_argument("--rows", type=parse_rows, default="all", help="rows of activations for them")
    parser.add_argument(
        "--dtypes", type=parse_words, default="bfloat16,float16", help="of activations for them"
    )
    parser.add_argument("--random", type=int, default=200, help="random problems")
    parser.add_argument("--archs", type=parse_words, help="to compile for, else this card's and sm_89")
    parser.add_argument("--jobs", type=int, default=16, help="processes that compile")
    parser.add_argument("--seconds", type=float, default=3600, help="after which the rest is left out")
    parser.add_argument("--only-compile", action="store_true", help="which needs no GPU")
    parser.add_argument("-o", "--output", type=Path, default=record.RESULTS / "gemm_accuracy_h200.json")
    arguments = parser.parse_args()
    archs = arguments.archs or list(dict.fromkeys([device_arch(torch.device("cuda")).name, "sm_89"]))
    listed = list(shape_cases(arguments.shapes, arguments.rows, arguments.dtypes, archs))
    drawn = list(random_cases(arguments.random, archs))
    start, results, weights = time.perf_counter(), [], dict[tuple[int, int, int, bool], Weight]()
    for cases, failure in compiled(listed + drawn, arguments.jobs):
        if time.perf_counter() - start > arguments.seconds:
            break
        problem, arch = cases[0].problem, cases[0].arch
        if arguments.only_compile:
            print(f"{problem} {arch}: {failure or 'compiled'}", flush=True)
            continue
        if failure is not None:  # a finding, not the end
            results += [as_row(case, {"failure": failure[:300]}) for case in cases]
            print(results[-1], flush=True)
            continue
        kernel, _ = load_cuda_kernel(problem, arch)
        key = (problem.N, problem.K, cases[0].seed, problem.x_dtype == "float16")
        if key not in weights:
            weights.clear()  # one at a time: in float64 the largest takes 1.8 GB
            weights[key] = Weight(*key)
        for case in cases:
            results.append(as_row(case, check(case, kernel, weights[key])))
            if results[-1]["failure"]:
                print(results[-1], flush=True)
    if arguments.only_compile:
        return
    facts, left_out = summary(results), len(listed) + len(drawn) - len(results)
    seconds = round(time.perf_counter() - start)
    record.write(arguments.output, results, summary=facts, bars=BARS, seconds=seconds, left_out=left_out)
    for fact in facts:
        print(fact)
    failures = sum(bool(row["failure"]) for row in results)
    print(f"{len(results)} cases, {failures} failures, {left_out} left out, written: {arguments.output}")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
