import json
import math

import pytest

from nvfp4_tvm.arch import ARCHS
from nvfp4_tvm.errors import NVFP4Error
from nvfp4_tvm.schedules.base import MatmulProblem, MRange
from nvfp4_tvm.schedules.spaces import SPACES, space_of
from nvfp4_tvm.tuning.trial import Candidate, Outcome, Trial, problem_of, trial_of

ARCH = ARCHS["sm_90"]
EPILOGUES = ("plain", "bias", "residual", "silu_mul", "float32", "bias+residual")


def some_trial(family, epilogue="plain", rows=24):
    space, problem = space_of(family), problem_of(4096, 8192, "bfloat16", epilogue)
    M = MRange(rows, rows)
    config = space.candidates(problem.N, problem.K, M, ARCH)[0]
    return Trial(problem, Candidate(family, config), rows, round=2)


@pytest.mark.parametrize("family", list(SPACES))
def test_trials_survive_json(family):
    rows = 8 if family == "gemv" else 64 if family == "gemm_cluster" else 300
    trial = some_trial(family, rows=rows)
    assert trial_of(json.loads(json.dumps(trial.to_json()))) == trial


@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_epilogues_name_problems(epilogue):
    trial = some_trial("gemm_mma", epilogue)
    assert trial.to_json()["epilogue"] == epilogue and trial_of(trial.to_json()).problem == trial.problem


@pytest.mark.parametrize("epilogue", ["", "gelu", "bias+", "residual+bias", "bfloat16", "plain+bias"])
def test_other_epilogues_are_refused(epilogue):
    with pytest.raises(NVFP4Error, match=r"epilogue .*: expected such as plain, bias"):
        problem_of(4096, 4096, "bfloat16", epilogue)


@pytest.mark.parametrize(
    "change",
    [
        {"N": "4096"}, {"N": -1}, {"K": 2**62}, {"rows": 1.5}, {"rows": True}, {"round": None},
        {"family": "cutlass"}, {"family": None}, {"config": {}}, {"config": None}, {"x_dtype": "int8"},
        {"x_dtype": None}, {"epilogue": 3},
    ],
)  # fmt: skip
def test_other_fields_are_refused(change):
    raw = some_trial("gemm_mma").to_json()
    with pytest.raises(NVFP4Error):
        trial_of(raw | change)


@pytest.mark.parametrize("raw", [None, [], "trial", {}, {"N": 4096}])
def test_what_is_no_trial_is_refused(raw):
    with pytest.raises(NVFP4Error):
        trial_of(raw)


def test_a_build_serves_the_rows_of_its_family():
    trial = some_trial("gemm_mma")
    build = trial.build(ARCH)
    assert build.candidate == trial.candidate and build.problem.dynamic and trial.rows in build.problem.M
    assert (build.problem.N, build.problem.K) == (4096, 8192)


def test_outcomes():
    assert Outcome(3.5, 1.0).cost == 3.5 and Outcome(None, 1.0, "wrong").cost == math.inf
    for outcome in (Outcome(3.5, 1.0), Outcome(None, 1.0, "wrong")):
        raw = {"time_us": outcome.time_us, "floor_us": outcome.floor_us, "error": outcome.error}
        assert Outcome.from_json(raw) == outcome


@pytest.mark.parametrize(
    "raw",
    [
        {}, {"time_us": 1.0}, {"time_us": "1", "floor_us": 1.0}, {"time_us": None, "floor_us": 1.0, "error": None},
        {"time_us": 1.0, "floor_us": 1.0, "error": "both"}, {"time_us": 1.0, "floor_us": None}, {"floor_us": 1.0},
    ],
)  # fmt: skip
def test_what_is_no_outcome_is_refused(raw):
    with pytest.raises(NVFP4Error, match="expected floor_us and either time_us or error"):
        Outcome.from_json(raw)


def test_candidates_say_what_they_are():
    trial = some_trial("gemv", rows=4)
    assert str(trial.candidate).startswith("gemv ") and str(trial.candidate) != "gemv "
    assert isinstance(trial.problem, MatmulProblem)
