"""What tuning is worth: tuned kernels beside what runs without records, and beside what near shapes suggest.

    python -m benchmarks.tuning_gain tuning.jsonl -o benchmarks/results/tuning_gain_NAME.json

For every shape of a database of ``nvfp4-tvm tune`` (or ``--shapes``) and M:

``tuned_us``    what the shape's own records give; where it has none because the families' own choice won, that one
``default_us``  what runs without any record
``untuned_us``  what runs if the shape had not been tuned: the database without its records, so that its nearest
                shapes (:mod:`nvfp4_tvm.schedules.tuned`) or, where none is near, the families' own models choose

All three are measured here, one after the other, twice in turns, and the lesser figure counts: every kernel is
checked against float64 first, weights are cold, launches are in one CUDA graph. Kernels that are one and the same
get one figure. Several devices (``--device cuda:0,cuda:1``) take the shapes in turn, each shape on one of them.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock
from typing import Any

from benchmarks import record
from benchmarks.gemm_bars import geometric_mean
from benchmarks.markdown import markdown_table
from benchmarks.shapes import parse_rows, parse_shapes
from nvfp4_tvm.arch import get_arch
from nvfp4_tvm.schedules.base import MatmulProblem, MRange
from nvfp4_tvm.schedules.records import Database
from nvfp4_tvm.schedules.tuned import choices_from
from nvfp4_tvm.tuning.build import Builder
from nvfp4_tvm.tuning.runner import Runner, make_runner
from nvfp4_tvm.tuning.search import dispatched
from nvfp4_tvm.tuning.trial import Candidate, Outcome, Trial

Row = dict[str, Any]
ROWS = (1, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 300, 512, 777, 1024, 2048)
#: Figures by name, and of which database the kernel is.
WAYS = ("tuned", "default", "untuned")
_TURNS = 2


def chosen(problem: MatmulProblem, M: int, database: Database, arch: str) -> Candidate | None:
    """Return what runs for M rows if a database is all that there is."""
    for choice in choices_from(problem, arch, (database,)):
        if M in choice.M:
            return Candidate(choice.family, choice.config)
    return dispatched(problem, MRange(M, M), get_arch(arch))


def without(database: Database, N: int, K: int) -> Database:
    """Return a database without the records of a shape."""
    return Database(tuple(r for r in database.records if (r.N, r.K) != (N, K)))


def measure(runner: Runner, builder: Builder | None, trials: Sequence[Trial]) -> dict[Trial, Outcome]:
    """Measure some kernels in turns; the best figure of each counts."""
    arch, best = get_arch(runner.device.arch), {}
    builds = {t: None if builder is None else builder.submit(t.build(arch)) for t in trials}
    for turn in range(_TURNS):
        for trial in trials:
            future = builds[trial]
            built = None if builder is None or future is None else builder.result(future)
            if isinstance(built, str):
                best[trial] = Outcome(None, runner.device.floor_us(trial), built)
                continue
            (outcome,) = runner.run([trial], built)
            if turn == 0 or outcome.cost < best[trial].cost:
                best[trial] = outcome
    return best


def planned(
    problem: MatmulProblem, rows: Sequence[int], database: Database, arch: str
) -> dict[int, dict[str, Trial]]:
    """Return what is to be measured of one shape, by M and way."""
    sources = {
        "tuned": database,
        "default": Database(),
        "untuned": without(database, problem.N, problem.K),
    }
    plan: dict[int, dict[str, Trial]] = {}
    for M in rows:
        kernels = {way: chosen(problem, M, source, arch) for way, source in sources.items()}
        plan[M] = {way: Trial(problem, c, M, 1) for way, c in kernels.items() if c is not None}
    return plan


def compare(
    problem: MatmulProblem, rows: Sequence[int], database: Database, runner: Runner, builder: Builder | None
) -> list[Row]:
    """Return a row for every M of one shape."""
    found = []
    for M, trials in planned(problem, rows, database, runner.device.arch).items():
        outcomes = measure(runner, builder, list(dict.fromkeys(trials.values())))
        row: Row = {"shape": f"{problem.N}x{problem.K}", "N": problem.N, "K": problem.K, "M": M}
        for way, trial in trials.items():
            row |= {f"{way}_us": outcomes[trial].time_us, f"{way}_kernel": str(trial.candidate)}
            row |= {"error": outcomes[trial].error} if outcomes[trial].error else {}
            row["floor_us"] = outcomes[trial].floor_us
        found.append(row)
    return found


def compare_all(
    shapes: Sequence[tuple[int, int]],
    rows: Sequence[int],
    database: Database,
    runners: Sequence[Runner],
    builder: Builder | None,
    output: Path | None,
) -> list[Row]:
    """Return the rows of all shapes, in their order; written as far as they are there after every shape."""
    device = runners[0].device
    waiting: SimpleQueue[tuple[int, int]] = SimpleQueue()
    for N, K in shapes:
        waiting.put((N, K))
    found: dict[tuple[int, int], list[Row]] = {}
    writing = Lock()

    def work(runner: Runner) -> None:
        while True:
            try:
                N, K = waiting.get_nowait()
            except Empty:
                return
            done = compare(MatmulProblem(N, K), rows, database, runner, builder)
            with writing:
                found[N, K] = done
                if output:
                    ordered = [row for shape in shapes if shape in found for row in found[shape]]
                    record.write(
                        output, ordered, device=device.name, source=device.source, devices=len(runners)
                    )

    with ThreadPoolExecutor(len(runners)) as pool:
        working = [pool.submit(work, runner) for runner in runners]
        for N, K in shapes:
            if builder is None:
                break
            # Compile ahead, in their order
            for trials in planned(MatmulProblem(N, K), rows, database, device.arch).values():
                for trial in trials.values():
                    builder.submit(trial.build(get_arch(device.arch)))
        for one in working:
            one.result()
    return [row for shape in shapes for row in found[shape]]


def ratios(rows: Sequence[Row], above: str, below: str) -> list[float]:
    """Return one figure over another, where there are both."""
    pairs = ((row.get(f"{above}_us"), row.get(f"{below}_us")) for row in rows)
    return [a / b for a, b in pairs if a and b]


def table(rows: Sequence[Row]) -> str:
    """Return, by shape and over all: gain of tuned kernels over defaults, loss of untuned ones."""
    lines = []
    for shape in (*dict.fromkeys(row["shape"] for row in rows), None):
        of = [row for row in rows if shape in (None, row["shape"])]
        gains, losses = ratios(of, "default", "tuned"), ratios(of, "untuned", "tuned")
        floors = [row["tuned_us"] / row["floor_us"] for row in of if row.get("tuned_us")]
        if gains and losses:
            cells = [geometric_mean(gains), max(gains), geometric_mean(losses), max(losses), min(floors)]
            lines.append([shape or "all", *(f"{cell:.3f}" for cell in cells)])
    columns = ["N x K", "default / tuned", "most", "untuned / tuned", "most", "tuned / floor, least"]
    return markdown_table(columns, lines)


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("database", type=Path, help="of nvfp4-tvm tune")
    parser.add_argument("--shapes", type=parse_shapes, help="NxK or names; default: all of the database")
    parser.add_argument("--rows", type=parse_rows, default=list(ROWS), help="M")
    parser.add_argument("--device", default="cuda", help="as nvfp4-tvm tune takes it; several: cuda:0,cuda:1")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes that compile")
    parser.add_argument("-o", "--output", type=Path, help="JSON")
    arguments = parser.parse_args()
    database = Database.read(arguments.database)
    shapes = arguments.shapes or list(dict.fromkeys((r.N, r.K) for r in database.records))
    runners = [make_runner(device) for device in arguments.device.split(",")]
    builder = Builder(runners[0].device.arch, arguments.jobs) if runners[0].compiles else None
    try:
        rows = compare_all(shapes, arguments.rows, database, runners, builder, arguments.output)
    finally:
        for runner in runners:
            runner.close()
        if builder is not None:
            builder.close()
    print(table(rows))
    return int(any("error" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
