"""The TIR form on llvm against plain Python; the CUDA form is compiled, and runs in the GPU tests of its users."""

import numpy as np
import pytest
import tvm
from relax_modules import tensor
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from nvfp4_tvm.codegen.machine_code import compile_machine_code
from nvfp4_tvm.schedules.cpu_common import argument
from nvfp4_tvm.schedules.grouped import GroupedProblem
from nvfp4_tvm.schedules.intrin.expert_tile import cuda_tile, emit_tile


def tiles_of(problem, height, indptr, rows, tiles):
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        source = argument("indptr", indptr.shape, "int32")
        found = tuple(argument(name, (tiles,), "int32") for name in ("expert", "first", "end"))
        with T.serial(tiles) as tile:
            emit_tile(problem, height, found, tile, source, rows)
    outputs = [tensor(np.full(tiles, -1, np.int32)) for _ in range(3)]
    tvm.compile(builder.get(), target="llvm")["main"](tensor(indptr), *outputs)
    return list(zip(*(output.numpy().tolist() for output in outputs), strict=True))


@pytest.mark.parametrize("counts", [[5, 0, 17, 0, 8, 1], [0, 0, 40], [3], [0, 0]], ids=str)
def test_every_row_is_in_one_tile_of_its_expert(counts):
    height, experts = 8, len(counts)
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    expected = [
        (expert, int(first), int(min(first + height, indptr[expert + 1])))
        for expert in range(experts)
        for first in range(indptr[expert], indptr[expert + 1], height)
    ]
    found = tiles_of(
        GroupedProblem(16, 16, experts=experts), height, indptr, int(indptr[-1]), len(expected) + 3
    )
    assert found[: len(expected)] == expected
    assert all(first == end for _, first, end in found[len(expected) :])


def test_rows_that_there_are_not_are_in_no_tile():
    indptr = np.array([0, 12], np.int32)
    assert tiles_of(GroupedProblem(16, 16, experts=1), 8, indptr, 10, 2) == [(0, 0, 8), (0, 8, 10)]


def test_selected_experts():
    problem = GroupedProblem(16, 16, experts=9, selected=True)
    found = tiles_of(problem, 8, np.array([[7, 0, 7]], np.int32), 3, 3)
    assert found == [(7, 0, 1), (0, 1, 2), (7, 2, 3)]


@pytest.mark.parametrize(
    "problem",
    [
        GroupedProblem(16, 16, experts=1),
        GroupedProblem(16, 16, experts=33),
        GroupedProblem(16, 16, experts=9, selected=True),
    ],
)
def test_the_cuda_form_compiles(problem):
    name, source = cuda_tile(problem, 64)
    kernel = f"""{source}
    extern "C" __global__ void find(int* out, const int* indptr, int rows) {{
      {name}(out[0], out[1], out[2], indptr, blockIdx.x, rows);
    }}"""
    (usage,) = compile_machine_code(kernel, "sm_80", ptx=False).usage.values()
    assert not usage.stack and not usage.spill_stores
