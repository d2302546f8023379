"""The block computation, unscheduled, on llvm; and what of it the schedule leans on."""

import numpy as np
import pytest
import tvm
from mma_problems import Case
from relax_modules import tensor

from nvfp4_tvm.schedules.base import MatmulProblem, MRange
from nvfp4_tvm.schedules.gemm_mma_compute import gemm_mma
from nvfp4_tvm.schedules.gemm_mma_config import MmaConfig
from nvfp4_tvm.schedules.intrin.fp4_decode import EPILOGUE_FACTOR


def problem_of(N, K, dtype="bfloat16", out_dtype=None, **features):
    return MatmulProblem(N, K, MRange(17), x_dtype=dtype, out_dtype=out_dtype or dtype, **features)


def config_of(block_k=128, **fields):
    return MmaConfig(16, 32, 16, 32, block_k=block_k, **{"token_tiles": 1, **fields})


def run(problem, config, M, group_size=16):
    case = Case.random(problem, M, group_size)
    function = gemm_mma(problem, config, group_size)
    compiled = tvm.compile(tvm.IRModule({"main": function}), target="llvm")["main"]
    out = tensor(case.empty(problem))
    compiled(*map(tensor, case.operands.values()), out)
    case.check(out.numpy())


@pytest.mark.parametrize(
    ("problem", "config"),
    [
        # N and K of no tile, odd M; one 16-row tile alone; K below one step
        (problem_of(33, 144), config_of()),
        (problem_of(8, 16, "float16"), config_of(stages=3)),
        (problem_of(24, 48, "float16", "float32"), config_of(k_warps=2)),
        (problem_of(32, 208, bias=True, residual=True), config_of(64)),
        (problem_of(48, 272, "float16", activation="silu_mul", bias=True), config_of(256, k_warps=2)),
        (problem_of(32, 128, "bfloat16", "float32", activation="silu_mul", residual=True), config_of(64)),
    ],
    ids=str,
)
def test_numbers(problem, config):
    run(problem, config, M=19)


@pytest.mark.parametrize("block_k", [64, 128, 256])
def test_groups_of_32(block_k):
    # A lane's 16, 32 or 64 k of a stage: less than a group, a group, two groups
    run(problem_of(40, 288), config_of(block_k), M=17, group_size=32)


def test_sums_of_the_splits():
    problem, config, M = problem_of(24, 400), config_of(splits=3), 18
    case = Case.random(problem, M)
    operands = case.operands
    compiled = tvm.compile(tvm.IRModule({"main": gemm_mma(problem, config)}), target="llvm")["main"]
    sums = tensor(np.full((3, M, 32), np.nan, np.float32))
    compiled(*(tensor(operands[name]) for name in ("x", "words", "scales")), sums)
    scale = operands["global_scale"].astype(np.float64) * EPILOGUE_FACTOR
    found = (sums.numpy().astype(np.float64).sum(axis=0) * scale)[:, : problem.N]
    case.check(found.astype(np.float32))


def test_what_lies_beyond_x_does_not_matter():
    # K = 144 leaves 112 k of the last tile beyond the row: the next row's NaN must not enter
    problem, M = problem_of(16, 144), 17
    case = Case.random(problem, M)
    x = case.operands["x"].copy()
    x[1::2] = np.nan
    compiled = tvm.compile(tvm.IRModule({"main": gemm_mma(problem, config_of())}), target="llvm")["main"]
    out = tensor(case.empty(problem))
    compiled(*map(tensor, {**case.operands, "x": x}.values()), out)
    found = out.numpy().astype(np.float32)
    assert np.isfinite(found[::2]).all() and np.isnan(found[1::2]).all()


def test_stages_along_k():
    # Never fewer than a pipeline's loop of two needs; else the splits share K in whole stages
    assert config_of(stages=4, splits=3).stages_along_k(16) == 5
    assert config_of(stages=4, splits=3).stages_along_k(128 * 30) == 10
    assert config_of(64, splits=3).stages_along_k(128 * 30) == 20
    assert config_of(256).stages_along_k(128 * 31) == 16
