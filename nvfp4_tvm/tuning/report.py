"""What a tuning run found: a table in Markdown, and the time against M beside the floor as a plot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from nvfp4_tvm.schedules.records import PREDICTED, epilogue_kind
from nvfp4_tvm.tuning.driver import Tuned
from nvfp4_tvm.tuning.runner import Device
from nvfp4_tvm.tuning.search import Finding

_COLUMNS = ("M", "kernel", "at M", "us", "floor us", "times floor", "default us", "gain", "tried")


def gain(finding: Finding) -> float | None:
    """Return how many times faster than the default the winner is, or None where there is no default."""
    default = finding.default_outcome
    if default is None or default.time_us is None:
        return None
    return default.time_us / finding.outcome.cost


def gains(tuned: Sequence[Tuned]) -> float | None:
    """Return the geometric mean of all gains, or None if there is none."""
    found = [g for one in tuned for finding in one.findings if (g := gain(finding)) is not None]
    return math.exp(sum(map(math.log, found)) / len(found)) if found else None


def crossovers(one: Tuned) -> list[int]:
    """Return the M from which another kernel is faster, in order."""
    return [finding.M.low for finding in one.findings[1:]]


def title(one: Tuned) -> str:
    """Return the name of a weight."""
    problem = one.problem
    kind = epilogue_kind(problem)
    return f"{problem.N}x{problem.K}, {problem.x_dtype}" + ("" if kind == "plain" else f", {kind}")


def markdown(tuned: Sequence[Tuned], device: Device) -> str:
    """Return the report."""
    how = (
        f"Predicted for a {device.name} by a model of waves, occupancy and bandwidth; nothing was measured."
        if device.source == PREDICTED
        else f"Measured on a {device.name}: cold weights, one CUDA graph, every kernel checked against float64."
    )
    mean = gains(tuned)
    summary = "" if mean is None else f" Geometric mean of the gains over the defaults: {mean:.3f}."
    parts = [f"# Tuning records for {device.arch}\n\n{how}{summary}\n"]
    for one in tuned:
        points = ", ".join(map(str, crossovers(one))) or "none"
        rows = [_cells(finding) for finding in one.findings]
        lines = [_COLUMNS, ("--:", ":--", *["--:"] * (len(_COLUMNS) - 2)), *rows]
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        parts.append(f"## {title(one)}\n\nAnother kernel from M = {points}.\n\n{table}\n")
    return "\n".join(parts)


def _cells(finding: Finding) -> tuple[str, ...]:
    outcome, default, faster = finding.outcome, finding.default_outcome, gain(finding)
    return (
        str(finding.M),
        str(finding.candidate) + (" (its own choice)" if finding.own else ""),
        str(finding.rows),
        f"{outcome.cost:.2f}",
        f"{outcome.floor_us:.2f}",
        f"{outcome.cost / outcome.floor_us:.2f}",
        "" if default is None or default.time_us is None else f"{default.time_us:.2f}",
        "" if faster is None else f"{faster:.3f}",
        str(finding.trials),
    )


def plot(tuned: Sequence[Tuned], device: Device, path: Path) -> None:
    """Draw one panel a weight: time of the winners and of the defaults against M, beside the floor."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(3, len(tuned))
    figure = Figure(figsize=(5 * columns, 3.6 * -(-len(tuned) // columns)), layout="constrained")
    FigureCanvasAgg(figure)
    for index, one in enumerate(tuned):
        axes = figure.add_subplot(-(-len(tuned) // columns), columns, index + 1)
        rows = [finding.rows for finding in one.findings]
        defaults = [
            (finding.rows, finding.default_outcome.time_us)
            for finding in one.findings
            if finding.default_outcome is not None and finding.default_outcome.time_us is not None
        ]
        axes.plot(rows, [finding.outcome.cost for finding in one.findings], "o-", label="tuned")
        if defaults:
            axes.plot(*zip(*defaults, strict=True), "x--", label="default")
        axes.plot(rows, [finding.outcome.floor_us for finding in one.findings], ":", label="floor")
        for M in crossovers(one):
            axes.axvline(M, color="0.9", linewidth=0.8, zorder=0)
        axes.set(xscale="log", yscale="log", title=title(one), xlabel="M", ylabel="microseconds")
        axes.legend()
    figure.suptitle(f"{device.arch}, {device.name}, {device.source}")
    figure.savefig(path, dpi=100)
