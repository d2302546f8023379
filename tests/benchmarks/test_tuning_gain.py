import json
import sys

import benchmark_modules  # noqa: F401
import pytest
from simulated_runner import SimulatedRunner
from tuning_records import record

from benchmarks import tuning_gain
from nvfp4_tvm.arch import ARCHS
from nvfp4_tvm.schedules.base import MatmulProblem, MRange
from nvfp4_tvm.schedules.records import Database

NEAR = record(4096, 5120, MRange(1, 8), "gemv", "sm_90", 2)
OWN = record(4096, 4096, MRange(1, 4), "gemv", "sm_90", 3)
DATABASE = Database((NEAR, OWN))
PROBLEM = MatmulProblem(4096, 4096)


def test_which_kernel_runs():
    def config(M, database):
        return tuning_gain.chosen(PROBLEM, M, database, "sm_90").config

    default = config(4, Database())
    assert config(4, DATABASE) == OWN.config != default
    # Beyond its own records the families choose: neighbours are for shapes without records
    assert config(8, DATABASE) == config(8, Database())
    assert config(8, tuning_gain.without(DATABASE, 4096, 4096)) == NEAR.config


def test_rows_and_table():
    rows = tuning_gain.compare(PROBLEM, [4, 512], DATABASE, SimulatedRunner(ARCHS["sm_90"]), None)
    assert [row["M"] for row in rows] == [4, 512]
    assert len({rows[0][f"{way}_kernel"] for way in tuning_gain.WAYS}) == 3
    assert len({rows[1][f"{way}_us"] for way in tuning_gain.WAYS}) == 1
    given = [{**row, "tuned_us": 2.0, "default_us": 3.0, "untuned_us": 2.2, "floor_us": 1.0} for row in rows]
    text = tuning_gain.table(given)
    assert "| 4096x4096 | 1.500 | 1.500 | 1.100 | 1.100 | 2.000 |" in text and "| all | 1.500" in text


def test_wrong_kernels_end_the_program_with_1(tmp_path, monkeypatch):
    class Wrong(SimulatedRunner):
        compiles = False

        def _one(self, trial):
            from nvfp4_tvm.tuning.trial import Outcome

            return Outcome(None, 1.0, "wrong: relative error 1")

    DATABASE.write(tmp_path / "db.jsonl")
    monkeypatch.setattr(tuning_gain, "make_runner", lambda device: Wrong(ARCHS["sm_90"]))
    arguments = [
        "x",
        str(tmp_path / "db.jsonl"),
        "--shapes",
        "4096x4096",
        "--rows",
        "4",
        "-o",
        str(tmp_path / "o"),
    ]
    monkeypatch.setattr(sys, "argv", arguments)
    assert tuning_gain.main() == 1
    written = json.loads((tmp_path / "o").read_text())
    assert written["rows"][0]["error"].startswith("wrong") and written["source"] == "measured"


def test_several_devices_share_the_shapes(tmp_path):
    class Counting(SimulatedRunner):
        def run(self, trials, library):
            shapes.update((trial.problem.N, trial.problem.K, id(self)) for trial in trials)
            return super().run(trials, library)

    shapes, file = set(), tmp_path / "o"
    wanted = [(4096, 4096), (4096, 5120), (5120, 4096), (6144, 4096)]
    runners = [Counting(ARCHS["sm_90"]) for _ in range(2)]
    rows = tuning_gain.compare_all(wanted, [4], DATABASE, runners, None, file)
    assert [(row["N"], row["K"]) for row in rows] == wanted
    written = json.loads(file.read_text())
    assert written["rows"] == rows and written["devices"] == 2
    assert len(shapes) == len(wanted)  # each on one of them
    alone = tuning_gain.compare_all(wanted, [4], DATABASE, runners[:1], None, None)
    assert alone == rows


def test_what_fails_on_a_device_ends_the_run():
    class Broken(SimulatedRunner):
        def run(self, trials, library):
            raise RuntimeError("the device is gone")

    runners = [SimulatedRunner(ARCHS["sm_90"]), Broken(ARCHS["sm_90"])]
    with pytest.raises(RuntimeError, match="the device is gone"):
        tuning_gain.compare_all([(4096, 4096)] * 2 + [(4096, 5120)] * 60, [4], DATABASE, runners, None, None)


def test_ratios_need_both_figures():
    rows = [{"untuned_us": 2.0, "tuned_us": 1.0}, {"untuned_us": None, "tuned_us": 1.0}]
    assert tuning_gain.ratios(rows, "untuned", "tuned") == [2.0]
