import os
from pathlib import Path

import pytest

from nvfp4_tvm.arch import ARCHS
from nvfp4_tvm.codegen import cache
from nvfp4_tvm.errors import TargetError
from nvfp4_tvm.schedules.base import MatmulProblem, MRange
from nvfp4_tvm.schedules.gemm_wgmma_config import WgmmaConfig
from nvfp4_tvm.schedules.spaces import space_of
from nvfp4_tvm.target import resolve_target
from nvfp4_tvm.torch_library import load_library
from nvfp4_tvm.tuning.build import Builder, compile_build
from nvfp4_tvm.tuning.trial import Candidate, Trial

PROBLEM = MatmulProblem(64, 256)


def build(rows, problem=PROBLEM):
    config = space_of("gemv").default(problem.N, problem.K, MRange(rows, rows), ARCHS["sm_89"])
    return Trial(problem, Candidate("gemv", config), rows).build(ARCHS["sm_89"])


def crash(one, arch):
    """A compiler that ends its process for one problem."""
    if one.problem.N == 64:
        os._exit(1)
    return Path(str(one.problem.N))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "kernels"))
    return tmp_path / "kernels"


def test_a_build_serves_the_rows_of_its_kernel():
    assert build(1).problem.M == MRange(1, 8) and build(1) == build(8) != build(9)
    assert build(9).problem.M == MRange(9, 16)


def test_a_candidate_becomes_a_library(folder):
    path = compile_build(build(3), "sm_89")
    assert isinstance(path, Path) and path.parent == folder
    library = load_library(path)
    assert library.rows == (1,) and callable(library.function)
    assert compile_build(build(3), "sm_89") == path and len(list(folder.glob("*.so"))) == 1


@pytest.mark.parametrize("family", ["gemm_cluster", "gemm_wgmma_ss"])
def test_candidates_of_every_hopper_kernel_make_one(family):
    space, arch = space_of(family), ARCHS["sm_90"]
    M = MRange(17, 32) if family == "gemm_cluster" else MRange(193, 256)
    candidate = Candidate(family, space.candidates(PROBLEM.N, PROBLEM.K, M, arch)[0])
    one = Trial(PROBLEM, candidate, M.high).build(arch)
    assert one.problem.M.covers(M)
    kernel = space.rule(candidate.config).apply(one.problem, resolve_target("cuda:sm_90").target)
    assert kernel is not None and candidate.config.name in kernel.name


def test_why_there_is_no_library():
    trial = Trial(PROBLEM, Candidate("gemm_wgmma", WgmmaConfig(32, 1, 4, 4, 2)), 32)
    assert "gemm_wgmma refuses" in compile_build(trial.build(ARCHS["sm_90"]), "sm_89")
    odd = Trial(MatmulProblem(64, 256, x_dtype="float32"), build(3).candidate, 3)
    assert "gemv refuses" in compile_build(odd.build(ARCHS["sm_89"]), "sm_89")


@pytest.mark.slow
def test_a_compiler_that_crashes_ends_nothing_else():
    builder = Builder("sm_89", 1, crash)
    try:
        assert "crashed" in builder.result(builder.submit(build(3)))
        other = build(3, MatmulProblem(32, 256))
        future = builder.submit(other)
        assert builder.result(future) == Path("32") and builder.submit(other) is future
    finally:
        builder.close()


def test_no_tuning_without_a_cache(monkeypatch):
    monkeypatch.setenv(cache.VARIABLE, "0")
    with pytest.raises(TargetError, match="unset the variable"):
        Builder("sm_89", 1)
