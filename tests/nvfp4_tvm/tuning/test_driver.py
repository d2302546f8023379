import multiprocessing
import os
import random
import signal
import time

import pytest
from simulated_runner import SimulatedRunner

from nvfp4_tvm.arch import ARCHS
from nvfp4_tvm.errors import DatabaseError
from nvfp4_tvm.schedules.base import MatmulProblem
from nvfp4_tvm.schedules.records import Database
from nvfp4_tvm.tuning.driver import Tuner, keep_in, run_identity
from nvfp4_tvm.tuning.journal import Journal
from nvfp4_tvm.tuning.search import Settings, ranges_of

PROBLEMS = [MatmulProblem(4096, 4096), MatmulProblem(1024, 4096), MatmulProblem(4096, 1024)]
SETTINGS = Settings(trials=12, ranges=ranges_of((8, 16, 64)))


def tune(folder, seconds=0.0, settings=SETTINGS, problems=PROBLEMS, limit=None):
    """Tune into a folder; return the runner, whether all is done, and the events."""
    runner, events = SimulatedRunner(ARCHS["sm_89"], seconds), []
    keep = keep_in(folder / "db.jsonl")
    with Journal(folder / "db.log", run_identity(runner, settings)) as journal:
        tuner = Tuner(runner, None, journal, settings, events.append)
        done = tuner.tune(problems, lambda one: keep(one.records("sm_89", "measured", "Simulated")), limit)
    return runner, done, events


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    runner, done, events = tune(folder)
    assert done
    return folder, runner, events


def test_records_of_every_weight(whole):
    database = Database.read(whole[0] / "db.jsonl")
    shapes = {(r.N, r.K) for r in database.records}  # none where the defaults win everywhere
    assert len(shapes) > 1 and shapes <= {(p.N, p.K) for p in PROBLEMS}
    for record in database.records:
        assert record.source == "measured" and record.device == "Simulated" and record.trials >= 12


def test_events_count_up(whole):
    _, runner, events = whole
    assert [event.done for event in events] == list(range(1, len(events) + 1)) and runner.calls == len(events)
    assert events[-1].done == events[-1].wanted


def test_nothing_is_measured_twice(whole):
    before = (whole[0] / "db.jsonl").read_text()
    runner, done, _ = tune(whole[0])
    assert done and runner.calls == 0 and (whole[0] / "db.jsonl").read_text() == before


def test_weights_can_be_added(whole, tmp_path):
    tune(tmp_path, problems=PROBLEMS[:1])
    runner, _, _ = tune(tmp_path)
    assert 0 < runner.calls < whole[1].calls
    assert (tmp_path / "db.jsonl").read_text() == (whole[0] / "db.jsonl").read_text()


def test_other_settings_are_refused(whole):
    with pytest.raises(DatabaseError, match="trials is 12, now 13"):
        tune(whole[0], settings=Settings(trials=13, ranges=SETTINGS.ranges))


def test_a_time_limit_leaves_the_rest_to_the_next_run(whole, tmp_path):
    for calls in (1, 1):  # a run gets on, however short
        runner, done, _ = tune(tmp_path, limit=0.0)
        assert not done and runner.calls == calls
    assert tune(tmp_path)[1]
    assert (tmp_path / "db.jsonl").read_text() == (whole[0] / "db.jsonl").read_text()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_ten_times_it_finishes_with_the_same_records(whole, tmp_path):
    context, kills, rng = multiprocessing.get_context("fork"), 0, random.Random(7)
    for _ in range(100):
        # The candidates are listed already in this process: what is left is a second of measuring
        process = context.Process(target=tune, args=(tmp_path, 0.002))
        process.start()
        if kills < 10:
            time.sleep(rng.uniform(0.02, 0.3))
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            kills += process.exitcode == -signal.SIGKILL
        else:
            process.join()
            assert process.exitcode == 0
            break
    assert kills == 10
    assert (tmp_path / "db.jsonl").read_text() == (whole[0] / "db.jsonl").read_text()
    # Nothing but the run's own files is left behind, whatever the moment of a kill
    assert {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")} == {
        "db.jsonl",
        "db.log",
    }


def test_a_database_that_cannot_be_read_is_not_replaced(tmp_path):
    (tmp_path / "db.jsonl").write_text("years of work\n")
    with pytest.raises(DatabaseError, match="no JSON"):
        tune(tmp_path)
    assert (tmp_path / "db.jsonl").read_text() == "years of work\n"
