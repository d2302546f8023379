"""The project's kernels as contenders of a side-by-side measurement, and what compiles them beforehand.

    python -m benchmarks.peer build --shapes 4096x4096,14336x4096 --jobs 16

A contender has a ``name``, ``prepare(packed, scale, global_scale)`` (uint8 ``[N, K/2]`` with even k in the low
nibble, float8_e4m3fn ``[N, K/16]``, a float) and ``run(a, weight, out)`` (``[M, K]``, what ``prepare`` returned,
``[M, N]`` written in place), on CUDA tensors.

``build`` compiles all kernels for every M into the folder of `nvfp4_tvm.codegen.cache` (``NVFP4_TVM_CACHE`` names
another), from where a measuring process loads them. Where there is a GPU it also has the driver translate what is
not compiled for it.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor

import torch

from benchmarks.shapes import parse_shapes, parse_words
from nvfp4_tvm.codegen.repack import build_repack
from nvfp4_tvm.layout import global_scale_shape, scales_shape, words_shape
from nvfp4_tvm.schedules.base import MatmulProblem
from nvfp4_tvm.target import cuda_target
from nvfp4_tvm.torch import PackedWeight, linear, pack
from nvfp4_tvm.torch_device import device_arch
from nvfp4_tvm.torch_kernels import CUDAKernel, Variant, load_cuda_kernel, warm_up
from nvfp4_tvm.torch_library import find_library

#: Architecture that `NVFP4TVMSm89` compiles for: no wgmma, no TMA, 99 KiB of shared memory.
SM_8X = "sm_89"


class NVFP4TVM:
    """What a user gets on this card."""

    name = "nvfp4_tvm"

    def prepare(self, packed: torch.Tensor, scale: torch.Tensor, global_scale: float) -> PackedWeight:
        """Pack a canonical weight."""
        return pack(packed, scale, global_scale)

    def run(self, a: torch.Tensor, weight: PackedWeight, out: torch.Tensor) -> None:
        """Multiply, on the current stream."""
        linear(a, weight, out=out)


class NVFP4TVMSm89(NVFP4TVM):
    """The sm_8x kernels on this card: compiled for sm_89, whose PTX the driver translates for a later card."""

    name = "nvfp4_tvm_sm89"

    def __init__(self) -> None:
        self._kernels: dict[tuple[Variant, int, int], CUDAKernel] = {}

    def run(self, a: torch.Tensor, weight: PackedWeight, out: torch.Tensor) -> None:
        """Multiply, on the current stream."""
        self.variant(a, weight, out)

    def variant(
        self,
        a: torch.Tensor,
        weight: PackedWeight,
        out: torch.Tensor,
        bias: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
        activation: str | None = None,
    ) -> None:
        """Multiply with an epilogue."""
        variant = Variant(a.dtype, out.dtype, bias is not None, residual is not None, activation)
        key = (variant, weight.N, weight.K)
        if key not in self._kernels:
            self._kernels[key], rows = load_cuda_kernel(variant.problem(weight.N, weight.K), SM_8X)
            warm_up(self._kernels[key], rows, variant, weight)
        self._kernels[key](a, weight, bias, residual, out)


def translated(arch: str) -> bool:
    """Whether there is a GPU here whose driver must translate the PTX of kernels compiled for ``arch``."""
    return torch.cuda.is_available() and device_arch(torch.device("cuda")).name != arch


def translate(problem: MatmulProblem, arch: str) -> None:
    """Load every kernel once, on a weight of zeros: the driver keeps its translations on disk.

    One takes it a second, which several processes spend at the same time and a measuring one would not.
    """
    N, K = problem.N, problem.K
    empty = [torch.zeros(s(N, K), dtype=torch.int32, device="cuda") for s in (words_shape, scales_shape)]
    rows = torch.zeros(global_scale_shape(N), device="cuda")
    weight = PackedWeight(N, K, *(tensor.view(torch.uint32) for tensor in empty), rows)
    kernel, low = load_cuda_kernel(problem, arch)
    x_dtype, out_dtype = (getattr(torch, name) for name in (problem.x_dtype, problem.out_dtype))
    variant = Variant(x_dtype, out_dtype, problem.bias, problem.residual, problem.activation)
    warm_up(kernel, low, variant, weight)
    torch.cuda.synchronize()


def compile_library(problem: MatmulProblem, arch: str) -> float | str:
    """Compile in a process of its own, what packs the weight included; return the seconds, or why it failed.

    Not as an exception: one that does not pickle (``CompileError`` does not) would end the whole pool.
    """
    start = time.perf_counter()
    try:
        find_library(problem, arch)
        build_repack(problem.N, problem.K, cuda_target(arch).target)
        if translated(arch):
            translate(problem, arch)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return time.perf_counter() - start


def build(shapes: list[tuple[int, int]], dtypes: list[str], archs: list[str], jobs: int) -> int:
    """Compile the kernels for every M, in parallel; return how many do not compile."""
    tasks = list(itertools.product(shapes, dtypes, archs))
    failures = 0
    # A fork would share TVM's and CUDA's state
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        futures = [
            pool.submit(compile_library, MatmulProblem(N, K, x_dtype=dtype, out_dtype=dtype), arch)
            for (N, K), dtype, arch in tasks
        ]
        for ((N, K), dtype, arch), future in zip(tasks, futures, strict=True):
            result = future.result()
            failures += isinstance(result, str)
            text = result[:1000] if isinstance(result, str) else f"{result:.1f} s"
            print(f"{N}x{K} {dtype} {arch}: {text}", flush=True)
    return failures


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("build", help="compile the kernels for every M")
    command.add_argument("--shapes", type=parse_shapes, default="all", help="NxK or names, or all")
    command.add_argument("--dtypes", type=parse_words, default="bfloat16", help="of activations")
    command.add_argument("--archs", type=parse_words, default=f"sm_90,{SM_8X}", help="to compile for")
    command.add_argument("--jobs", type=int, default=1, help="processes")
    arguments = parser.parse_args()
    return int(build(arguments.shapes, arguments.dtypes, arguments.archs, arguments.jobs) > 0)


if __name__ == "__main__":
    sys.exit(main())
