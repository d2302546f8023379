"""What the matmul kernels are held to, against what was measured side by side with others.

    python -m benchmarks.gemm_bars [benchmarks/results/peer_gemm_h200.json]

Reads a file with a row for each weight and M: ``floor_us`` (the time to move the bytes at the speed of a device
copy), and for every contender ``NAME_us`` (None where it refused) and ``NAME_err``. Prints every bar with its
figure and where the figure is from, and fails if one is not reached.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks import record

Row = dict[str, Any]

OURS, OURS_SM8X = "nvfp4_tvm", "nvfp4_tvm_sm89"
MARLIN, HUMMING, CUBLAS = "marlin", "humming", "cublas_bf16"
DEFAULT = record.RESULTS / "peer_gemm_h200.json"
#: Weights that bars on the largest ones mean; of equal size all count.
LARGEST = 4
#: Relative error of a result that is rounded to bfloat16 once.
ERROR = 1.70e-3


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes
    ----------
    name : str
        What it asks for.
    limit, goal : float
        The figure must be at most (`at_most`) or at least ``limit``, and should be ``goal``.
    at_most : bool
        See above.
    pick : callable
        Whether a row counts.
    value : callable
        The figure of a row; None where a contender refused, which does not count against us.
    combine : callable
        From the figures to one; the worst, where it is None.
    unit : str
        Shown behind figures.
    """

    name: str
    limit: float
    pick: Callable[[Row], bool]
    value: Callable[[Row], float | None]
    goal: float | None = None
    at_most: bool = True
    combine: Callable[[Sequence[float]], float] | None = None
    unit: str = "x"

    def reached(self, figure: float | None, level: float | None = None) -> bool:
        """Whether a figure reaches the bar, or another level."""
        level = self.limit if level is None else level
        return figure is not None and (figure <= level if self.at_most else figure >= level)


@dataclass(frozen=True)
class Finding:
    """A bar with its figure; ``where`` is the row it is from, or how many rows."""

    bar: Bar
    figure: float | None
    where: str

    @property
    def passed(self) -> bool:
        """Whether the bar is reached."""
        return self.bar.reached(self.figure)


def geometric_mean(values: Sequence[float]) -> float:
    """Return the geometric mean of positive numbers."""
    return math.exp(sum(map(math.log, values)) / len(values))


def speedup(ours: str, *peers: str) -> Callable[[Row], float | None]:
    """Return the figure "how many times faster than the fastest of these"; 0 where we refuse."""

    def value(row: Row) -> float | None:
        times = [row[f"{peer}_us"] for peer in peers if row.get(f"{peer}_us") is not None]
        if not times:
            return None
        return 0.0 if row.get(f"{ours}_us") is None else min(times) / row[f"{ours}_us"]

    return value


def times_of(ours: str, other: str) -> Callable[[Row], float | None]:
    """Return the figure "how many times ``other``'s", for the key ``other`` of a row; infinity where we refuse."""

    def value(row: Row) -> float | None:
        if row.get(other) is None:
            return None
        return math.inf if row.get(f"{ours}_us") is None else row[f"{ours}_us"] / row[other]

    return value


def error(ours: str) -> Callable[[Row], float | None]:
    """Return the figure "relative error"; infinity where we refuse, or the result is NaN."""

    def value(row: Row) -> float:
        found = row.get(f"{ours}_err")
        return found if isinstance(found, float | int) and not math.isnan(found) else math.inf

    return value


def tflops(ours: str) -> Callable[[Row], float | None]:
    """Return the figure "10^12 operations a second"; 0 where we refuse."""

    def value(row: Row) -> float:
        time = row.get(f"{ours}_us")
        return 0.0 if time is None else 2e-6 * row["M"] * row["N"] * row["K"] / time

    return value


def largest(rows: Sequence[Row]) -> Callable[[Row], bool]:
    """Return whether a row is of one of the largest weights."""
    sizes = sorted({(row["shape"], row["N"] * row["K"]) for row in rows}, key=lambda pair: -pair[1])
    least = sizes[:LARGEST][-1][1] if sizes else 0
    return lambda row: row["N"] * row["K"] >= least


def bars(rows: Sequence[Row]) -> list[Bar]:
    """Return the bars for a set of rows."""
    large = largest(rows)
    few = lambda row: row["M"] <= 8  # noqa: E731
    middle = lambda row: 16 <= row["M"] <= 128  # noqa: E731
    many = lambda row: row["M"] >= 256  # noqa: E731
    every = lambda row: True  # noqa: E731
    return [
        Bar(
            "M <= 8, the largest weights: times of the memory floor",
            1.35,
            lambda row: few(row) and large(row),
            times_of(OURS, "floor_us"),
            goal=1.25,
        ),
        Bar("M <= 8: speed of Marlin", 1.0, few, speedup(OURS, MARLIN), at_most=False),
        Bar("M <= 8: speed of Humming", 1.0, few, speedup(OURS, HUMMING), at_most=False),
        Bar("M = 16..128: speed of Marlin", 1.0, middle, speedup(OURS, MARLIN), at_most=False),
        Bar("M = 16..128: speed of Humming", 1.0, middle, speedup(OURS, HUMMING), at_most=False),
        Bar("M = 16..128: speed of cuBLAS bf16", 1.0, middle, speedup(OURS, CUBLAS), at_most=False),
        Bar("M >= 256: times of cuBLAS bf16", 1.08, many, times_of(OURS, f"{CUBLAS}_us"), goal=1.0),
        Bar("M >= 256: speed of Humming", 1.0, many, speedup(OURS, HUMMING), at_most=False),
        Bar("every M: relative error", ERROR, every, error(OURS), unit=""),
        Bar("sm_8x kernels, every M: speed of Marlin", 1.0, every, speedup(OURS_SM8X, MARLIN), at_most=False),
        Bar(
            "sm_8x kernels, every M: speed of Marlin, geometric mean",
            1.35,
            every,
            speedup(OURS_SM8X, MARLIN),
            at_most=False,
            combine=geometric_mean,
        ),
        Bar(
            "sm_8x kernels, M >= 1024: TFLOP/s",
            450,
            lambda row: row["M"] >= 1024,
            tflops(OURS_SM8X),
            goal=520,
            at_most=False,
            unit="",
        ),
        Bar("sm_8x kernels, every M: relative error", ERROR, every, error(OURS_SM8X), unit=""),
    ]


def judge(bar: Bar, rows: Sequence[Row]) -> Finding:
    """Return the figure of a bar: the worst of its rows, or what it makes of all; None without rows."""
    values = [(value, row) for row in rows if bar.pick(row) and (value := bar.value(row)) is not None]
    if not values:
        return Finding(bar, None, "no rows")
    if bar.combine is not None:
        numbers = [value for value, _ in values]
        # A refusal is no factor of a mean: it is the figure
        figure = 0.0 if 0.0 in numbers else bar.combine(numbers)
        return Finding(bar, figure, f"{len(values)} rows")
    figure, row = (max if bar.at_most else min)(values, key=lambda pair: pair[0])
    return Finding(bar, figure, f"{row['shape']}, M={row['M']}")


def judge_all(rows: Sequence[Row]) -> list[Finding]:
    """Return all findings."""
    return [judge(bar, rows) for bar in bars(rows)]


def number(figure: float | None, unit: str) -> str:
    """Write a figure: three digits and the unit."""
    if figure is None:
        return "-"
    if math.isinf(figure):
        return "refused"
    return f"{figure:.0f}{unit}" if figure >= 100 else f"{figure:.3g}{unit}"


def main(
    path: Annotated[Path, typer.Argument(help="JSON of the measurement.")] = DEFAULT,
    worst: Annotated[int, typer.Option(help="Rows to show of each bar that is not reached.")] = 5,
) -> None:
    """Print the bars; exit with 1 if one is not reached."""
    rows = json.loads(path.read_text())["rows"]
    findings = judge_all(rows)
    table = Table("bar", "limit", "goal", "figure", "", "where")
    for finding in findings:
        bar = finding.bar
        state = "pass" if finding.passed else "FAIL"
        if finding.passed and bar.goal is not None:
            state += ", goal reached" if bar.reached(finding.figure, bar.goal) else ", goal missed"
        sign = "<=" if bar.at_most else ">="
        table.add_row(
            bar.name,
            f"{sign} {number(bar.limit, bar.unit)}",
            "" if bar.goal is None else f"{sign} {number(bar.goal, bar.unit)}",
            number(finding.figure, bar.unit),
            state,
            finding.where,
        )
    console = Console(width=max(150, Console().width))
    console.print(table)
    for finding in findings:
        bar = finding.bar
        if finding.passed or bar.combine is not None:
            continue
        values = [(value, row) for row in rows if bar.pick(row) and (value := bar.value(row)) is not None]
        missed = [pair for pair in values if not bar.reached(pair[0])]
        missed.sort(key=lambda pair: pair[0], reverse=bar.at_most)
        console.print(f"{bar.name}: missed in {len(missed)} of {len(values)} rows")
        for value, row in missed[:worst]:
            console.print(f"  {row['shape']}, M={row['M']}: {number(value, bar.unit)}")
    sys.exit(not all(finding.passed for finding in findings))


if __name__ == "__main__":
    typer.run(main)
