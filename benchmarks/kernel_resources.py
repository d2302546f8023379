"""What each kernel takes of a GPU and which instructions it is made of, from the compiler: needs no GPU.

    python -m benchmarks.kernel_resources --jobs 2

For every architecture and weight, the kernels that the dispatch chooses: registers, spills and shared memory as
ptxas and the launch say, blocks that fit on an SM by the architecture table, and counts of instructions in the
disassembled machine code.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.ir import Call

from benchmarks import record
from benchmarks.shapes import parse_shapes, parse_words
from nvfp4_tvm.arch import ARCHS
from nvfp4_tvm.codegen.cache import compile_cached
from nvfp4_tvm.codegen.compiling import launch_names
from nvfp4_tvm.codegen.launch import LoweredLaunch, lower_launch, with_host
from nvfp4_tvm.codegen.machine_code import MachineCode
from nvfp4_tvm.codegen.matmul import host_name
from nvfp4_tvm.codegen.sass import count_instructions, sass
from nvfp4_tvm.codegen.toolkit import load_library
from nvfp4_tvm.schedules.base import MatmulProblem, MRange
from nvfp4_tvm.schedules.dispatch import kernels_for
from nvfp4_tvm.schedules.kernel import CudaKernel
from nvfp4_tvm.target import cuda_target

#: Union value of an entry of the stack of arguments: kTVMFFIAnyUnionValue of TVM's ``TVMStructFieldKind``.
_VALUE = 15
#: How TVM calls a launch parameter that is the number of bytes of dynamic shared memory.
_DYNAMIC_SHARED = "tirx.use_dyn_shared_memory"
#: Launch parameters that have no value on the stack: programmatic dependent launch is on or off.
_FLAGS = ("tirx.use_programtic_dependent_launch",)
_THREADS = ("threadIdx.x", "threadIdx.y", "threadIdx.z")

Row = dict[str, Any]


def launch_values(lowered: LoweredLaunch) -> dict[str, int | None]:
    """Return the launch parameters by name; None for those that depend on M."""
    (kernel,) = lowered.kernels.values()
    names = [str(name) for name in kernel.launch_param_tags if str(name) not in _FLAGS]
    found: dict[int, tirx.Expr] = {}

    def visit(call: Call) -> None:
        if str(getattr(call.op, "name", "")).endswith("tvm_struct_set"):
            _, index, field, value = call.args
            if _constant(field) == _VALUE and _constant(index) is not None:
                found[int(index)] = value

    # The last values of the stack are those of the one call; checks of arguments come before it
    tvm_ffi.structural_walk(lowered.host[lowered.name].body, (Call, visit))
    first = len(kernel.arg_types)
    return {name: _constant(found.get(first + i)) for i, name in enumerate(names)}


def _constant(expr: tirx.Expr | None) -> int | None:
    while isinstance(expr, tirx.Cast):
        expr = expr.value
    return int(expr) if isinstance(expr, tirx.IntImm) else None


def count_classes(counts: Counter[str]) -> dict[str, int]:
    """Return how many instructions of the kinds that matter a listing has."""
    classes: Counter[str] = Counter()
    for instruction, count in counts.items():
        name, *modifiers = instruction.split(".")
        if name in ("HMMA", "HGMMA", "LDGSTS", "UBLKCP", "UTMALDG"):
            classes[name] += count
        if name in ("LDG", "LDS", "STS", "STG", "LDGSTS") and "128" in modifiers:
            classes[f"{name}.128"] += count
    return dict(classes)


def kernels(problem: MatmulProblem, arch: str) -> Iterator[tuple[str, list[MRange], CudaKernel]]:
    """Return the kernels of a problem: family, ranges of M, kernel, each kernel once."""
    chosen: dict[str, tuple[str, list[MRange], CudaKernel]] = {}
    for m_range, rule, kernel in kernels_for(problem, cuda_target(arch).target):
        if not isinstance(kernel, CudaKernel):
            raise TypeError(f"found {type(kernel).__name__} of {rule.name}, expected a CudaKernel")
        chosen.setdefault(kernel.name, (rule.name, [], kernel))[1].append(m_range)
    return iter(chosen.values())


def measure(lowered: LoweredLaunch, code: MachineCode) -> Row:
    """Return the resources and instructions of one launch."""
    values = launch_values(lowered)
    threads = 1
    for name in _THREADS:
        if name in values:
            extent = values[name]
            if extent is None:
                raise ValueError(f"{lowered.name}: found {name} that depends on M, expected a constant")
            threads *= extent
    dynamic = values.get(_DYNAMIC_SHARED, 0)
    if dynamic is None:
        raise ValueError(f"{lowered.name}: found shared memory that depends on M, expected a constant")
    ((_, usage),) = code.usage.items()
    arch = next(arch for arch in ARCHS.values() if code.arch in (arch.name, arch.compile_arch))
    shared = usage.static_shared + dynamic
    return {
        "registers": usage.registers,
        "spills": usage.spill_stores + usage.spill_loads,
        "stack": usage.stack,
        "static_shared": usage.static_shared,
        "dynamic_shared": dynamic,
        "threads": threads,
        "blocks_per_sm": arch.blocks_per_sm(threads, usage.registers, shared),
        "sass": count_classes(count_instructions(sass(code.fatbin, code.arch))),
    }


def resources(N: int, K: int, arch: str, dtype: str = "bfloat16") -> list[Row]:
    """Return a row for each launch of each kernel of a weight."""
    rows = []
    problem = MatmulProblem(N, K, x_dtype=dtype, out_dtype=dtype)
    for family, ranges, kernel in kernels(problem, arch):
        # By the names in a library, so that whatever was compiled for one is found in the cache
        names = launch_names(host_name(problem), kernel)
        for index, (name, launch) in enumerate(zip(names, kernel.launches, strict=True)):
            lowered = lower_launch(launch, name, with_host(cuda_target(arch).target))
            measured = measure(lowered, compile_cached(lowered.source, lowered.arch))
            part = f" ({index + 1} of {len(kernel.launches)})" if len(kernel.launches) > 1 else ""
            rows.append(
                {
                    "arch": arch,
                    "compiled_for": lowered.arch,
                    "N": N,
                    "K": K,
                    "dtype": dtype,
                    "family": family,
                    "kernel": kernel.name + part,
                    "M": ", ".join(map(str, ranges)),
                    **measured,
                }
            )
    return rows


def resources_or_error(N: int, K: int, arch: str) -> list[Row] | str:
    """Return `resources`, or what went wrong: not every error passes from one process to another."""
    try:
        return resources(N, K, arch)
    except Exception as error:
        return f"{arch} {N}x{K}: {type(error).__name__}: {error}"


def problems(row: Row) -> list[str]:
    """Return what is wrong with a kernel: it spills, does not fit, or lacks the instructions of its kind.

    The plain family has no tensor cores and is not held to instructions.
    """
    arch, counts = ARCHS[row["arch"]], row["sass"]
    found = []
    if row["spills"]:
        found.append(f"{row['spills']} bytes of registers are spilled")
    if row["registers"] > arch.registers_per_thread:
        found.append(f"{row['registers']} registers")
    shared = row["static_shared"] + row["dynamic_shared"]
    if shared > arch.shared_per_block:
        found.append(f"{shared} bytes of shared memory, the architecture has {arch.shared_per_block}")
    if not row["blocks_per_sm"]:
        found.append("no block fits on an SM")
    return found + _missing(row["family"], counts) if _multiplies(row) else found


def _multiplies(row: Row) -> bool:
    """Whether a launch is the product itself, not the preparation or the sum of parts, by its tensor cores."""
    return row["family"] != "gemm_plain" and bool(row["sass"].get("HMMA") or row["sass"].get("HGMMA"))


def _missing(family: str, counts: dict[str, int]) -> list[str]:
    """Return what a launch with products lacks: 16-byte loads anywhere, the family's way to copy ahead."""
    found = []
    if not counts.get("LDG.128") and not counts.get("LDGSTS.128"):
        found.append("no 16-byte load from global memory in its machine code")
    copies = {"gemm_mma": ("LDGSTS",), "gemm_cluster": ("LDGSTS",), "gemm_wgmma": ("UBLKCP", "UTMALDG")}
    ahead = copies.get(family, ())
    if ahead and not any(counts.get(name) for name in ahead):
        found.append(f"no {' or '.join(ahead)} in its machine code")
    if family in ("gemm_cluster", "gemm_wgmma") and not counts.get("HGMMA"):
        found.append("no HGMMA in its machine code")
    return found


def summarize(rows: list[Row]) -> list[Row]:
    """Return a row for each architecture and family: the least and the greatest figure of its kernels.

    Launches without products (that rearrange activations, or add parts up) are a family's ``other launches``.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        products = row["family"] == "gemm_plain" or _multiplies(row)
        name = row["family"] if products else f"{row['family']}, other launches"
        groups.setdefault((row["arch"], name), []).append(row)
    summary = []
    for (arch, family), group in groups.items():
        shared = [row["static_shared"] + row["dynamic_shared"] for row in group]
        spans = {
            name: [row[name] for row in group] for name in ("registers", "spills", "threads", "blocks_per_sm")
        }
        spans["shared"] = shared
        for name in sorted({name for row in group for name in row["sass"]}):
            spans[name] = [row["sass"].get(name, 0) for row in group]
        summary.append(
            {
                "arch": arch,
                "family": family,
                "kernels": len({row["kernel"] for row in group}),
                **{name: [min(values), max(values)] for name, values in spans.items()},
            }
        )
    return summary


def nvrtc_version() -> str:
    """Return the version of the compiler."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    load_library("libnvrtc.so.12", "cuda_nvrtc").nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return f"{major.value}.{minor.value}"


def main() -> int | str:
    """Print a line for each family and write the figures as JSON; return the exit code, or an error to print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", type=parse_shapes, default="all", help="NxK or names, or all")
    parser.add_argument("--archs", type=parse_words, default=",".join(ARCHS), help="to compile for")
    parser.add_argument("--jobs", type=int, default=2, help="processes that compile")
    parser.add_argument("-o", "--output", type=Path, default=record.RESULTS / "kernel_resources.json")
    arguments = parser.parse_args()
    rows: list[Row] = []
    with ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("spawn")) as pool:
        futures = [
            pool.submit(resources, N, K, arch) for arch in arguments.archs for N, K in arguments.shapes
        ]
        for future in futures:
            rows += future.result()
    summary = summarize(rows)
    for row in summary:
        spans = ", ".join(f"{name} {low}..{high}" for name, (low, high) in list(row.items())[3:])
        print(f"{row['arch']} {row['family']}, {row['kernels']} kernels: {spans}")
    wrong = [(row, problem) for row in rows for problem in problems(row)]
    for row, problem in wrong:
        print(f"{row['arch']} {row['N']}x{row['K']} {row['kernel']}: {problem}")
    record.write(arguments.output, summary, nvrtc=nvrtc_version(), shapes=len(arguments.shapes), all=rows)
    print(f"{len(rows)} launches, {len(wrong)} problems, written: {arguments.output}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
