import pytest
from simulated_runner import SimulatedRunner, make_fragile, refuse

from nvfp4_tvm.arch import ARCHS
from nvfp4_tvm.errors import TargetError
from nvfp4_tvm.schedules.base import MatmulProblem
from nvfp4_tvm.schedules.spaces import space_of
from nvfp4_tvm.tuning.runner import IsolatedRunner, ModelRunner, make_runner
from nvfp4_tvm.tuning.trial import Candidate, Trial

PROBLEM = MatmulProblem(4096, 4096)
GEMV = space_of("gemv")


def trial(rows):
    from nvfp4_tvm.schedules.base import MRange

    config = GEMV.default(4096, 4096, MRange(rows, rows), ARCHS["sm_89"])
    return Trial(PROBLEM, Candidate("gemv", config), rows)


@pytest.mark.parametrize("arch", sorted(ARCHS))
def test_the_model_predicts(arch):
    runner = make_runner(f"model:{arch}")
    assert isinstance(runner, ModelRunner) and not runner.compiles
    assert runner.device.source == "predicted" and runner.device.arch == arch
    (outcome,) = runner.run([trial(1)], None)
    assert outcome.error is None and outcome.cost > outcome.floor_us > 1


@pytest.mark.parametrize("device", ["", "cpu", "cuda:x", "cuda:-1", "model", "model:sm_70"])
def test_other_devices_are_refused(device):
    with pytest.raises(TargetError):
        make_runner(device)


@pytest.mark.slow
def test_a_trial_that_crashes_hangs_or_raises_ends_nothing_else():
    runner = IsolatedRunner(make_fragile, "sm_89", limit=1.0)
    try:
        expected = SimulatedRunner(ARCHS["sm_89"]).run([trial(1)], None)
        assert runner.run([trial(1)], None) == expected
        for rows, message in ((2, "crashed"), (3, "did not end within 1 s"), (4, "illegal memory access")):
            (outcome,) = runner.run([trial(rows)], None)
            assert outcome.time_us is None and message in outcome.error and outcome.floor_us > 0
        assert runner.run([trial(1)], None) == expected
    finally:
        runner.close()


def test_a_runner_that_cannot_be_made():
    with pytest.raises(TargetError, match="cannot measure: ValueError: no such device"):
        IsolatedRunner(refuse)
