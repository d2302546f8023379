"""The tuner: runs the searches of all weights, builds ahead, measures one kernel at a time, keeps everything.

Kernels of several weights are under way at a time, so that processes compile while the GPU measures, and while one
weight waits for the last kernel of a generation. The GPU takes whatever is built first; searches do not depend on
that order (:mod:`.search`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from nvfp4_tvm.arch import get_arch
from nvfp4_tvm.schedules.base import MatmulProblem
from nvfp4_tvm.schedules.records import Database, Record, epilogue_kind, header
from nvfp4_tvm.tuning.build import Builder, Built
from nvfp4_tvm.tuning.journal import Journal
from nvfp4_tvm.tuning.runner import AT_ONCE, Runner
from nvfp4_tvm.tuning.search import Finding, Outcomes, Search, Settings, search
from nvfp4_tvm.tuning.trial import Build, Outcome, Trial


@dataclass(frozen=True)
class Tuned:
    """What came of one weight."""

    problem: MatmulProblem
    findings: tuple[Finding, ...]

    def records(self, arch: str, source: str, device: str) -> list[Record]:
        """Return the records of the findings; what runs without a record needs none."""
        p, date = self.problem, datetime.now(timezone.utc).strftime("%Y-%m-%d")
        return [
            Record(
                arch,
                p.x_dtype,
                p.N,
                p.K,
                finding.M,
                epilogue_kind(p),
                finding.candidate.family,
                finding.candidate.config,
                finding.rows,
                float(finding.outcome.cost),
                finding.outcome.floor_us,
                finding.trials,
                source,
                device,
                date,
            )
            for finding in self.findings
            if not finding.own
        ]


@dataclass(frozen=True)
class Event:
    """What a progress display is told after every measurement.

    Attributes
    ----------
    trial : Trial
        What was measured.
    outcome : Outcome
        What came of it.
    done, wanted : int
        Trials so far, and those known to be wanted; the latter grows with every generation.
    """

    trial: Trial
    outcome: Outcome
    done: int
    wanted: int


@dataclass
class _Active:
    """A search under way: what it waits for."""

    problem: MatmulProblem
    search: Search
    batch: list[Trial]
    findings: list[Finding] | None = None
    waiting: dict[Build, list[Trial]] = field(default_factory=dict)


class Tuner:
    """Tunes weights one after the other.

    Parameters
    ----------
    runner : Runner
        Takes the times.
    builder : Builder or None
        Compiles; None if the runner needs no kernels.
    journal : Journal
        Keeps the outcomes.
    settings : Settings
        Of all searches.
    report : callable, optional
        Called with an `Event` after every measurement.
    """

    def __init__(
        self,
        runner: Runner,
        builder: Builder | None,
        journal: Journal,
        settings: Settings,
        report: Callable[[Event], None] | None = None,
    ) -> None:
        self.runner, self.builder, self.journal, self.settings = runner, builder, journal, settings
        self.report = report or (lambda event: None)
        self.arch = get_arch(runner.device.arch)
        self.done = self.wanted = 0

    def tune(
        self,
        problems: Iterable[MatmulProblem],
        keep: Callable[[Tuned], None],
        seconds: float | None = None,
    ) -> bool:
        """Tune some weights.

        Parameters
        ----------
        problems : iterable of MatmulProblem
            Of every M.
        keep : callable
            Called with what came of each weight as soon as it is done.
        seconds : float, optional
            No more than the measurement at hand after so long; the journal lets the next run continue.

        Returns
        -------
        bool
            Whether all are done.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        rest = iter(problems)
        active: list[_Active] = []
        while True:
            while len(active) < AT_ONCE and (problem := next(rest, None)) is not None:
                one = self._begin(problem)
                if one.findings is None:
                    active.append(one)
                else:  # all of it was in the journal
                    keep(Tuned(one.problem, tuple(one.findings)))
            if not active:
                return True
            one = self._measure_one(active)
            if one.findings is not None:
                active.remove(one)
                keep(Tuned(one.problem, tuple(one.findings)))
            # After a measurement: every run gets on, however short
            if active and deadline is not None and time.monotonic() > deadline:
                return False

    def _begin(self, problem: MatmulProblem) -> _Active:
        generator = search(problem, self.arch, self.settings)
        one = _Active(problem, generator, next(generator))
        self._ask(one)
        return one

    def _ask(self, one: _Active) -> None:
        """Order what a batch needs and the journal has not; go on with the search while it has all."""
        while True:
            asked = list(dict.fromkeys(one.batch))
            missing = [trial for trial in asked if trial not in self.journal.outcomes]
            self.done += len(asked) - len(missing)
            self.wanted += len(asked)
            for trial in missing:
                one.waiting.setdefault(trial.build(self.arch), []).append(trial)
            if self.builder is not None:
                for build in one.waiting:
                    self.builder.submit(build)
            if missing:
                return
            if not self._go_on(one):
                return

    def _measure_one(self, active: Sequence[_Active]) -> _Active:
        """Measure all trials of the first kernel that is built; go on with its search if they were the last."""
        one, build, built = self._next_built(active)
        trials = one.waiting.pop(build)
        if isinstance(built, str):
            floors = (round(self.runner.device.floor_us(trial), 3) for trial in trials)
            outcomes = [Outcome(None, floor, built) for floor in floors]
        else:
            outcomes = self.runner.run(trials, built)
        found = dict(zip(trials, outcomes, strict=True))
        self.journal.add(found)
        for trial, outcome in found.items():
            self.done += 1
            self.report(Event(trial, outcome, self.done, self.wanted))
        if not one.waiting and self._go_on(one):
            self._ask(one)
        return one

    def _go_on(self, one: _Active) -> bool:
        """Give a search the outcomes it waits for; return whether it wants more."""
        outcomes: Outcomes = {trial: self.journal.outcomes[trial] for trial in one.batch}
        try:
            one.batch = one.search.send(outcomes)
        except StopIteration as stop:
            one.findings = stop.value
            return False
        return True

    def _next_built(self, active: Sequence[_Active]) -> tuple[_Active, Build, Built | None]:
        if self.builder is None:
            return active[0], next(iter(active[0].waiting)), None
        futures: dict[Future[Built], tuple[_Active, Build]] = {}
        for one in active:
            for build in one.waiting:
                future = self.builder.submit(build)
                if future.done():
                    return one, build, self.builder.result(future)
                futures[future] = one, build
        ready, _ = wait(futures, return_when=FIRST_COMPLETED)
        future = next(iter(ready))
        return *futures[future], self.builder.result(future)


def run_identity(runner: Runner, settings: Settings) -> dict[str, object]:
    """Return what the outcomes of a run depend on, for its journal. Weights may be added to a run."""
    versions = {name: value for name, value in header().items() if name != "title"}
    return {
        **versions,
        "arch": runner.device.arch,
        "device": runner.device.name,
        "trials": settings.trials,
        "ranges": [str(M) for M in settings.ranges],
        "fixed": settings.fixed,
        "seed": settings.seed,
        "families": list(settings.families),
        "resolution": settings.resolution,
        "near": settings.near.digest,
    }


def keep_in(path: Path) -> Callable[[list[Record]], Database]:
    """Return a function that replaces records in a database file, whole or not at all, and returns all."""
    database = Database.read(path) if path.exists() else Database()

    def keep(records: list[Record]) -> Database:
        nonlocal database
        database = database.merged(records)
        database.write(path)
        return database

    return keep
