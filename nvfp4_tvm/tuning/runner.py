"""Who takes the times: an interface, the model in place of a GPU, and a process around either.

A kernel that is tried may crash its process or never end. :class:`IsolatedRunner` keeps that from ending the
run: it gives every call a time limit, starts a new process after a crash, and reports the trial as failed.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from nvfp4_tvm.arch import Arch, get_arch
from nvfp4_tvm.errors import TargetError
from nvfp4_tvm.schedules.model import CHOSEN, COPY_SHARE, floor_us, usual_card
from nvfp4_tvm.schedules.records import PREDICTED
from nvfp4_tvm.schedules.spaces import space_of
from nvfp4_tvm.tuning.process import ignore_interrupts
from nvfp4_tvm.tuning.trial import Outcome, Trial

#: Weights that are tuned at a time, whose operands a runner keeps.
AT_ONCE = 4


@dataclass(frozen=True)
class Device:
    """What times are taken on.

    Attributes
    ----------
    name : str
        As records say it.
    arch : str
        Whose kernels it runs.
    source : str
        ``measured`` or ``predicted``.
    bandwidth : float
        Of a copy, bytes a second: what floors are computed with.
    resolution : float
        Times closer than this factor are equal.
    """

    name: str
    arch: str
    source: str
    bandwidth: float
    resolution: float = 1.01

    def floor_us(self, trial: Trial) -> float:
        """Return the floor of a trial."""
        return floor_us(trial.problem.N, trial.problem.K, trial.rows, self.bandwidth)


class Runner(Protocol):
    """Takes times.

    Attributes
    ----------
    device : Device
        See there.
    compiles : bool
        Whether it runs compiled kernels.
    """

    device: Device
    compiles: bool

    def run(self, trials: Sequence[Trial], library: Path | None) -> list[Outcome]:
        """Take the times of trials of one kernel, whose library it is."""

    def close(self) -> None:
        """Give back what it holds."""


class ModelRunner:
    """The families' models in place of a GPU: what the records of architectures that nobody tuned on come from."""

    compiles = False

    def __init__(self, arch: Arch) -> None:
        card = usual_card(arch)
        self.arch = arch
        self.device = Device(card.name, arch.name, PREDICTED, COPY_SHARE * card.bandwidth, CHOSEN)

    def run(self, trials: Sequence[Trial], library: Path | None) -> list[Outcome]:
        """See `Runner.run`."""
        return [self._run(trial) for trial in trials]

    def _run(self, trial: Trial) -> Outcome:
        space, problem = space_of(trial.candidate.family), trial.problem
        time = space.time(trial.candidate.config, problem.N, problem.K, trial.rows, self.arch)
        return Outcome(round(time, 3), round(self.device.floor_us(trial), 3))

    def close(self) -> None:
        """See `Runner.close`."""


def make_runner(device: str) -> Runner:
    """Return the runner of a ``--device``: ``cuda``, ``cuda:1`` or ``model:sm_89``.

    Raises
    ------
    TargetError
        If there is no such device.
    """
    kind, _, rest = device.partition(":")
    if kind == "model":
        return ModelRunner(get_arch(rest))
    if kind == "cuda" and (not rest or rest.isdigit()):
        from nvfp4_tvm.tuning.cuda_runner import make_cuda_runner

        return IsolatedRunner(make_cuda_runner, int(rest or 0))
    raise TargetError(f"device {device!r}: expected cuda, cuda:N, or model:sm_XY to predict times")


# ----------------------------------------------------------------------------------------
# In a process of its own

#: Seconds a process may take to start (imports, the first use of the device), and one call.
START_LIMIT, RUN_LIMIT = 120.0, 8.0
_CRASHED = "the measuring process crashed"


def _serve(pipe: Connection, parent: int, make: Callable[..., Runner], arguments: tuple[Any, ...]) -> None:
    ignore_interrupts(parent)
    try:
        runner = make(*arguments)
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")
        return
    pipe.send(runner.device)
    while True:
        try:
            trials, library = pipe.recv()
        except EOFError:
            return
        try:
            answer: list[Outcome] | str = runner.run(trials, library)
        except Exception as error:
            answer = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        pipe.send(answer)
        if isinstance(answer, str):
            return  # after a failed launch a CUDA context is of no more use


class IsolatedRunner:
    """A runner in a process of its own.

    Parameters
    ----------
    make : callable
        ``make(*arguments)`` returns the runner, in its process; picklable.
    arguments
        See ``make``.
    limit : float
        Seconds a call may take.

    Raises
    ------
    TargetError
        If the runner cannot be made.
    """

    compiles = True

    def __init__(self, make: Callable[..., Runner], *arguments: Any, limit: float = RUN_LIMIT) -> None:
        self._make, self._arguments, self._limit = make, arguments, limit
        self._process: Any = None
        self.device = self._start()

    def _start(self) -> Device:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, os.getpid(), self._make, self._arguments)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        device = self._receive(START_LIMIT)
        if not isinstance(device, Device):
            self.close()
            raise TargetError(f"cannot measure: {device}")
        return device

    def _receive(self, limit: float) -> object:
        """Return what the process sends, or a sentence about why it does not."""
        try:
            if not self._pipe.poll(limit):
                return f"did not end within {limit:.0f} s"
            return self._pipe.recv()
        except (EOFError, OSError):
            return _CRASHED

    def run(self, trials: Sequence[Trial], library: Path | None) -> list[Outcome]:
        """See `Runner.run`."""
        if self._process is None:
            self._start()
        try:
            self._pipe.send((list(trials), library))
            answer = self._receive(self._limit)
        except OSError:
            answer = _CRASHED
        if isinstance(answer, list):
            return answer
        self.close()
        return [Outcome(None, round(self.device.floor_us(trial), 3), str(answer)) for trial in trials]

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._process = None
