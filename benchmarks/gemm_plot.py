"""Pictures of the matmul measurements for the documentation: time by M for each weight, and speed over others.

    python -m benchmarks.gemm_plot [benchmarks/results/peer_gemm_h200.json] [-o docs/images]

``docs/make_tables.py`` calls this too. A picture keeps the digest of the figures it shows in its PNG metadata, so
that `stale` tells whether it shows other ones: the bytes of a picture depend on the version of matplotlib.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator
from PIL import Image

from benchmarks.gemm_bars import (
    CUBLAS,
    DEFAULT,
    HUMMING,
    MARLIN,
    OURS,
    OURS_SM8X,
    Row,
    geometric_mean,
)
from benchmarks.gemm_tables import LABELS, Report, factors

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"

#: Colour, line and width of a contender: the palette of Okabe and Ito, which colour-blind readers tell apart.
STYLES: dict[str, dict[str, Any]] = {
    CUBLAS: {"color": "#999999", "linestyle": "-", "linewidth": 1.2},
    MARLIN: {"color": "#56b4e9", "linestyle": "-", "linewidth": 1.2},
    HUMMING: {"color": "#e69f00", "linestyle": "-", "linewidth": 1.2},
    OURS_SM8X: {"color": "#009e73", "linestyle": "--", "linewidth": 1.4},
    OURS: {"color": "#d55e00", "linestyle": "-", "linewidth": 2.0},
}
#: Panels side by side.
COLUMNS = 5
#: Ticks of M; rows in between have points too.
TICKS = (1, 4, 16, 64, 256, 1024, 4096)
_DPI = 110
_DIGEST = "Figures"


def digest(report: Report) -> str:
    """Return what stands for the figures of a measurement."""
    return hashlib.sha256(json.dumps(report, sort_keys=True).encode()).hexdigest()


def plain_number(value: float, _position: int | None = None) -> str:
    """Write 0.5, 1, 10, 1000: no powers of ten."""
    return f"{value:g}"


def _axes_of_m(axes: Axes) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(TICKS, [str(M) for M in TICKS])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(True, which="major", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)


def _line(rows: Sequence[Row], key: str) -> tuple[list[int], list[float]]:
    """Return M and figure of the rows that have one, by M."""
    points = sorted((row["M"], row[key]) for row in rows if row.get(key) is not None)
    return [M for M, _ in points], [value for _, value in points]


def times(report: Report) -> Figure:
    """Return a panel for each weight: microseconds a call by M, with the floor."""
    shapes = list(dict.fromkeys(row["shape"] for row in report["rows"]))
    lines = math.ceil(len(shapes) / COLUMNS)
    figure = Figure(figsize=(3.0 * min(COLUMNS, len(shapes)), 2.7 * lines + 0.7), dpi=_DPI)
    panels = figure.subplots(lines, min(COLUMNS, len(shapes)), squeeze=False)
    for axes in panels.flat[len(shapes) :]:
        axes.set_axis_off()
    for axes, shape in zip(panels.flat, shapes, strict=False):
        rows = [row for row in report["rows"] if row["shape"] == shape]
        _axes_of_m(axes)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(plain_number))
        axes.yaxis.set_minor_formatter(NullFormatter())
        for contender, style in STYLES.items():
            axes.plot(*_line(rows, f"{contender}_us"), label=LABELS[contender], **style)
        axes.plot(*_line(rows, "floor_us"), color="black", linestyle=":", linewidth=1.2, label="memory floor")
        axes.set_title(f"{shape}\nN={rows[0]['N']}, K={rows[0]['K']}", fontsize=9)
    figure.supxlabel("M, rows of activations", fontsize=9)
    figure.supylabel("microseconds a call", fontsize=9)
    _legend(figure, panels.flat[0], report)
    return figure


def speedups(report: Report) -> Figure:
    """Return one panel: our speed over each other's by M, geometric mean and span over the weights."""
    figure = Figure(figsize=(7.5, 3.8), dpi=_DPI)
    axes = figure.subplots()
    _axes_of_m(axes)
    axes.axhline(1.0, color="black", linewidth=0.8)
    by_m: dict[int, list[Row]] = {}
    for row in report["rows"]:
        by_m.setdefault(row["M"], []).append(row)
    for contender in (CUBLAS, MARLIN, HUMMING):
        spans = {M: factors(rows, OURS, contender) for M, rows in sorted(by_m.items())}
        shown = [M for M, values in spans.items() if values]
        color = STYLES[contender]["color"]
        axes.fill_between(
            shown,
            [min(spans[M]) for M in shown],
            [max(spans[M]) for M in shown],
            color=color,
            alpha=0.15,
            linewidth=0,
        )
        means = [geometric_mean(spans[M]) for M in shown]
        axes.plot(shown, means, color=color, linewidth=2, label=LABELS[contender], marker=".")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("M, rows of activations", fontsize=9)
    axes.set_ylabel("times the speed of", fontsize=9)
    _legend(figure, axes, report)
    return figure


def _legend(figure: Figure, axes: Axes, report: Report) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles[::-1], labels[::-1], loc="outside upper right", ncols=len(labels), fontsize=9, frameon=False
    )
    figure.text(0.01, 0.985, f"{report['device']}, {report['date']}", fontsize=9, va="top")
    figure.set_layout_engine("constrained")


#: Pictures by the beginning of their file names.
PICTURES = {"gemm_times": times, "gemm_speedups": speedups}


def pictures(report_path: Path, folder: Path = IMAGES) -> dict[str, Path]:
    """Return where the pictures of a measurement belong, by their kind."""
    device = report_path.stem.rpartition("_")[2]
    return {kind: folder / f"{kind}_{device}.png" for kind in PICTURES}


def stale(report_path: Path, folder: Path = IMAGES) -> list[Path]:
    """Return the pictures that are missing or show other figures than the measurement's."""
    expected = digest(json.loads(report_path.read_text()))
    return [path for path in pictures(report_path, folder).values() if _shown(path) != expected]


def _shown(path: Path) -> str | None:
    if not path.exists():
        return None
    with Image.open(path) as image:
        return image.info.get(_DIGEST)


def draw(report_path: Path, folder: Path = IMAGES) -> list[Path]:
    """Draw the pictures of a measurement that are stale; return them."""
    report = json.loads(report_path.read_text())
    todo = stale(report_path, folder)
    for kind, path in pictures(report_path, folder).items():
        if path in todo:
            path.parent.mkdir(parents=True, exist_ok=True)
            PICTURES[kind](report).savefig(path, metadata={_DIGEST: digest(report)})
    return todo


def main(
    path: Annotated[Path, typer.Argument(help="JSON of the measurement.")] = DEFAULT,
    folder: Annotated[Path, typer.Option("-o", help="Where to write.")] = IMAGES,
) -> None:
    """Draw the pictures that are out of date."""
    for drawn in draw(path, folder):
        print(drawn)


if __name__ == "__main__":
    typer.run(main)
