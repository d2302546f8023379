"""A runner without a GPU: times are a fixed function of the trial, some candidates fail, some end the process."""

import hashlib
import json
import os
import time

from nvfp4_tvm.schedules.spaces import space_of
from nvfp4_tvm.tuning.runner import Device, ModelRunner
from nvfp4_tvm.tuning.trial import Outcome


def luck(trial, *more):
    """A number in [0, 1) that belongs to a trial."""
    text = json.dumps([trial.to_json(), *more], sort_keys=True)
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32


class SimulatedRunner(ModelRunner):
    """The model's times, each off by up to a fifth; one candidate in ten is wrong."""

    def __init__(self, arch, seconds=0.0):
        super().__init__(arch)
        self.device = Device("Simulated", arch.name, "measured", 1e12)
        self.seconds = seconds
        self.calls = 0

    def run(self, trials, library):
        self.calls += len(trials)
        time.sleep(self.seconds)
        return [self._one(trial) for trial in trials]

    def _one(self, trial):
        from dataclasses import replace

        if luck(replace(trial, rows=1, round=0)) < 0.1:
            return Outcome(None, 1.0, "wrong: relative error 1")
        space, problem = space_of(trial.candidate.family), trial.problem
        config, rows = trial.candidate.config, trial.rows
        return Outcome(
            space.time(config, problem.N, problem.K, rows, self.arch) * (0.8 + 0.4 * luck(trial)), 1.0
        )


class Fragile(SimulatedRunner):
    """Ends its process for M = 2, never answers for M = 3, raises for M = 4."""

    compiles = True

    def run(self, trials, library):
        rows = trials[0].rows
        if rows == 2:
            os._exit(1)
        if rows == 3:
            time.sleep(3600)
        if rows == 4:
            raise RuntimeError("CUDA error: an illegal memory access")
        return super().run(trials, library)


def make_fragile(arch):
    """For a process of its own."""
    from nvfp4_tvm.arch import get_arch

    return Fragile(get_arch(arch))


def refuse():
    """A runner that cannot be made."""
    raise ValueError("no such device")
