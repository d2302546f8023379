"""Every candidate of the kernel families for one weight, measured: how good the models' order is.

    python -m benchmarks.sweep 4096x4096 --rows 1,32,512 --candidates 100 -o benchmarks/results/sweep_NAME.json

A time counts only if the kernel's result is right (`nvfp4_tvm.tuning.cuda_runner`). The table has the best of
each M with the model's own first choice and the rank that the model gave to the best; the picture has them all,
predicted against measured.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks import record
from benchmarks.markdown import markdown_table
from benchmarks.shapes import parse_rows, parse_shapes
from nvfp4_tvm.arch import get_arch
from nvfp4_tvm.schedules.base import MatmulProblem, MRange
from nvfp4_tvm.schedules.space import encode
from nvfp4_tvm.schedules.spaces import SPACES
from nvfp4_tvm.tuning.build import Builder
from nvfp4_tvm.tuning.runner import Runner, make_runner
from nvfp4_tvm.tuning.trial import Candidate, Outcome, Trial

Row = dict[str, Any]


def trials(problem: MatmulProblem, M: int, arch: str, count: int) -> list[tuple[Trial, int, float]]:
    """Return the first candidates of every family with their rank in it and the predicted time."""
    found = []
    for family, space in SPACES.items():
        for rank, config in enumerate(
            space.candidates(problem.N, problem.K, MRange(M, M), get_arch(arch))[:count]
        ):
            predicted = space.time(config, problem.N, problem.K, M, get_arch(arch))
            found.append((Trial(problem, Candidate(family, config), M), rank, predicted))
    return found


def measure(runner: Runner, builder: Builder | None, trial: Trial) -> Outcome:
    """Measure one candidate."""
    library = None
    if builder is not None:
        built = builder.result(builder.submit(trial.build(get_arch(runner.device.arch))))
        if isinstance(built, str):
            return Outcome(None, runner.device.floor_us(trial), built)
        library = built
    return runner.run([trial], library)[0]


def sweep(
    problem: MatmulProblem, rows: Sequence[int], count: int, runner: Runner, builder: Builder | None
) -> list[Row]:
    """Return a row for every M and candidate."""
    arch = runner.device.arch
    wanted = [one for M in rows for one in trials(problem, M, arch, count)]
    if builder is not None:
        for trial, _, _ in wanted:
            builder.submit(trial.build(get_arch(arch)))
    found = []
    for trial, rank, predicted in wanted:
        outcome = measure(runner, builder, trial)
        found.append(
            {
                "shape": f"{problem.N}x{problem.K}",
                "M": trial.rows,
                "family": trial.candidate.family,
                "kernel": str(trial.candidate),
                "config": encode(trial.candidate.config),
                "rank": rank,
                "predicted_us": round(predicted, 3),
                "measured_us": outcome.time_us,
                "floor_us": outcome.floor_us,
                "error": outcome.error,
            }
        )
    return found


def table(rows: Sequence[Row]) -> str:
    """Return the best of every M and family beside the family's own choice."""
    lines = []
    for M, family in dict.fromkeys((row["M"], row["family"]) for row in rows):
        tried = [row for row in rows if (row["M"], row["family"]) == (M, family)]
        right = [row for row in tried if row["measured_us"] is not None]
        if not right:
            lines.append([f"{M}, {family}", "none", "", "", "", f"0 of {len(tried)}"])
            continue
        best = min(right, key=lambda row: row["measured_us"])
        own = next((row["measured_us"] for row in tried if row["rank"] == 0), None)
        lines.append(
            [
                f"{M}, {family}",
                best["kernel"],
                f"{best['measured_us']:.2f}",
                "" if own is None else f"{own:.2f}",
                str(best["rank"]),
                f"{len(right)} of {len(tried)}",
            ]
        )
    return markdown_table(["M, family", "best", "us", "own choice us", "rank of the best", "right"], lines)


def picture(rows: Sequence[Row], title: str) -> Figure:
    """Return a panel for every M: predicted against measured, by family."""
    Ms = list(dict.fromkeys(row["M"] for row in rows))
    figure = Figure(figsize=(3.6 * len(Ms), 3.6), layout="constrained")
    for axes, M in zip(figure.subplots(1, len(Ms), squeeze=False).flat, Ms, strict=True):
        for family in dict.fromkeys(row["family"] for row in rows):
            points = [
                r for r in rows if (r["M"], r["family"]) == (M, family) and r["measured_us"] is not None
            ]
            values = ([r["predicted_us"] for r in points], [r["measured_us"] for r in points])
            axes.plot(*values, ".", label=family)
        axes.set(title=f"M = {M}", xlabel="predicted us", ylabel="measured us")
        axes.axline((0, 0), slope=1, color="0.8", linewidth=0.8, zorder=0)
        axes.legend(fontsize=7)
    figure.suptitle(title)
    return figure


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shape", type=parse_shapes, help="NxK or a name")
    parser.add_argument("--rows", type=parse_rows, default="1,32,512", help="M")
    parser.add_argument("--candidates", type=int, default=50, help="of each family")
    parser.add_argument("--device", default="cuda", help="as nvfp4-tvm tune takes it")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes that compile")
    parser.add_argument("-o", "--output", type=Path, help="JSON; a picture goes beside it")
    arguments = parser.parse_args()
    ((N, K),) = arguments.shape
    runner = make_runner(arguments.device)
    builder = Builder(runner.device.arch, arguments.jobs) if runner.compiles else None
    try:
        rows = sweep(MatmulProblem(N, K), arguments.rows, arguments.candidates, runner, builder)
    finally:
        runner.close()
        if builder is not None:
            builder.close()
    print(table(rows))
    if arguments.output:
        record.write(arguments.output, rows, device=runner.device.name, source=runner.device.source)
        title = f"{N}x{K}, {runner.device.name}, {runner.device.source}"
        picture(rows, title).savefig(arguments.output.with_suffix(".png"))
    wrong = [row for row in rows if row["error"] is not None and row["error"].startswith("wrong")]
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
