"""Tables of the matmul measurements for the documentation, and the file they are made from.

    python -m benchmarks.gemm_tables merge raw.json more.json -o benchmarks/results/peer_gemm_h200.json

``merge`` joins what several runs of a side-by-side measurement wrote and adds the date; ``docs/make_tables.py``
calls the rest.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.gemm_bars import (
    CUBLAS,
    DEFAULT,
    HUMMING,
    MARLIN,
    OURS,
    OURS_SM8X,
    Row,
    geometric_mean,
    judge_all,
    number,
    speedup,
)
from benchmarks.markdown import markdown_table

Report = dict[str, Any]

LABELS = {
    OURS: "nvfp4_tvm",
    OURS_SM8X: "nvfp4_tvm for sm_89",
    MARLIN: "Marlin",
    HUMMING: "Humming",
    CUBLAS: "cuBLAS bf16",
}
#: Ranges of M that summaries are made for: decoding, small batches, prompts.
RANGES: tuple[tuple[str, Callable[[int], bool]], ...] = (
    ("M = 1..8", lambda M: M <= 8),
    ("M = 9..64", lambda M: 8 < M <= 64),
    ("M = 65..255", lambda M: 64 < M < 256),
    ("M >= 256", lambda M: M >= 256),
)
#: Numbers of rows that the tables of single weights show; the file has more.
SHOWN = (1, 8, 16, 32, 64, 128, 256, 482, 1024, 4096)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def where(report: Report) -> str:
    """Return the device and the conditions of a measurement."""
    bandwidth = report["copy_bytes_per_s"] / 1e12
    return (
        f"{report['device']}, {report['date']}: weights read from memory at every call (a ring of copies of "
        f"four times the L2), one CUDA graph, median. A device copy moves {bandwidth:.2f} TB/s; the floor is the "
        "bytes of weight, activations and result at that speed."
    )


def factors(rows: Sequence[Row], ours: str, peer: str) -> list[float]:
    """Return how many times faster we are in the rows that both ran."""
    values = [speedup(ours, peer)(row) for row in rows if row.get(f"{ours}_us") is not None]
    return [value for value in values if value is not None]


def gemm_summary(reports: Sequence[Report]) -> str:
    """Return the geometric means, and the least, of our speed over that of each peer by range of M."""
    parts = []
    for report in reports:
        lines = []
        for label, contains in RANGES:
            rows = [row for row in report["rows"] if contains(row["M"])]
            if not rows:
                continue
            cells = []
            for ours, peer in (
                (OURS, MARLIN),
                (OURS, HUMMING),
                (OURS, CUBLAS),
                (OURS_SM8X, MARLIN),
            ):
                values = factors(rows, ours, peer)
                cells.append(f"{geometric_mean(values):.2f} ({min(values):.2f})" if values else "-")
            lines.append([label, *cells])
        columns = ["", "Marlin", "Humming", "cuBLAS bf16", "sm_89 kernels over Marlin"]
        count = len({row["shape"] for row in report["rows"]})
        parts.append(
            f"Times the speed of others, geometric mean over {count} layer shapes (the least in brackets). "
            f"{where(report)} The last column is the build for sm_89 on the same card.\n\n"
            + markdown_table(columns, lines)
        )
    return "\n".join(parts)


def gemm_times(reports: Sequence[Report]) -> str:
    """Return one table a weight: microseconds by contender and M."""
    parts = []
    for report in reports:
        parts.append(where(report) + " Microseconds a call.\n")
        for shape in dict.fromkeys(row["shape"] for row in report["rows"]):
            rows = {row["M"]: row for row in report["rows"] if row["shape"] == shape}
            shown = [M for M in SHOWN if M in rows]
            first = next(iter(rows.values()))
            lines = []
            for contender, label in LABELS.items():
                if any(f"{contender}_us" in rows[M] for M in shown):
                    lines.append([label, *(_time(rows[M].get(f"{contender}_us")) for M in shown)])
            lines.append(["floor", *(_time(rows[M]["floor_us"]) for M in shown)])
            columns = [f"{shape}, N={first['N']}, K={first['K']}", *(f"M={M}" for M in shown)]
            parts.append(markdown_table(columns, lines))
    return "\n".join(parts)


def _time(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def gemm_bars(reports: Sequence[Report]) -> str:
    """Return the bars with their figures."""
    parts = []
    for report in reports:
        lines = []
        for finding in judge_all(report["rows"]):
            bar = finding.bar
            sign = "at most" if bar.at_most else "at least"
            lines.append(
                [
                    bar.name,
                    f"{sign} {number(bar.limit, bar.unit)}",
                    "" if bar.goal is None else number(bar.goal, bar.unit),
                    number(finding.figure, bar.unit),
                    "yes" if finding.passed else "**no**",
                    finding.where,
                ]
            )
        columns = ["", "bar", "goal", "worst figure", "reached", "at"]
        parts.append(f"{report['device']}, {report['date']}.\n\n" + markdown_table(columns, lines))
    return "\n".join(parts)


def gemm_accuracy(reports: Sequence[Report]) -> str:
    """Return one table of all files that ``benchmarks/gemm_accuracy.py`` wrote."""
    names = {"shapes": "listed shapes", "random": "random problems"}
    parts = []
    for report in reports:
        lines = [
            [
                f"{names[row['list']]}, {row['arch']}, {row['x_dtype']} to {row['out_dtype']}",
                str(row["cases"]),
                str(row["failures"]),
                str(row["reproducible"]),
                f"{row['worst_err']:.2e}",
                f"{row['worst_rounding']:.2e}",
                f"{row['worst_over_rounding']:.4f}" if row["out_dtype"] != "float32" else "-",
            ]
            for row in report["summary"]
        ]
        columns = [
            "",
            "cases",
            "failed",
            "same bits",
            "worst error",
            "worst rounding",
            "worst error / rounding",
        ]
        parts.append(
            f"{report['gpu']}, {report['date']}: relative error against float64 (Frobenius norm), beside that of "
            "the exact product rounded once, the least that any kernel can have.\n\n"
            + markdown_table(columns, lines)
        )
    return "\n".join(parts)


def kernel_resources(reports: Sequence[Report]) -> str:
    """Return one table a file that ``benchmarks/kernel_resources.py`` wrote: a line for each family."""
    parts = []
    for report in reports:
        lines = []
        for row in report["rows"]:
            shared = [kib / 1024 for kib in row["shared"]]
            lines.append(
                [
                    f"{row['arch']} {row['family']}",
                    str(row["kernels"]),
                    _span(row["registers"]),
                    _span(row["spills"]),
                    _span(shared, ".1f"),
                    _span(row["threads"]),
                    _span(row["blocks_per_sm"]),
                    *(_span(row.get(name, [0, 0])) for name in SASS_COLUMNS),
                ]
            )
        columns = [
            "",
            "kernels",
            "registers",
            "spilled bytes",
            "shared KiB",
            "threads",
            "blocks/SM",
            *SASS_COLUMNS,
        ]
        parts.append(
            f"NVRTC {report['nvrtc']}, {report['date']}: all kernels that the dispatch chooses for "
            f"{report['shapes']} weights, bfloat16, least to greatest. Instructions are counted in "
            "the machine code; the file has every kernel.\n\n" + markdown_table(columns, lines)
        )
    return "\n".join(parts)


def _span(values: Sequence[float], form: str = "") -> str:
    low, high = (format(value, form) for value in values)
    return low if low == high else f"{low} to {high}"


def sanitizer(reports: Sequence[Report]) -> str:
    """Return one table of all files that ``benchmarks/sanitize.py`` wrote."""
    lines = []
    for report in reports:
        for row in report["rows"]:
            state = "clean" if row["exit_code"] == 0 else f"exit code {row['exit_code']}"
            lines.append(
                [
                    f"{row['tool']}, {row['arch']}, {row['shape']} {row['dtype']}",
                    str(len(row["kernels"])),
                    state,
                    row["summary"],
                ]
            )
    where = dict.fromkeys(f"{report['gpu']}, {report['date']}" for report in reports)
    return f"{'; '.join(where)}.\n\n" + markdown_table(["", "kernels", "", "the tool says"], lines)


def emulated(reports: Sequence[Report]) -> str:
    """Return one table of all files that ``benchmarks/emulate.py`` wrote."""
    lines = []
    for report in reports:
        ways = len(report["ways"])
        kinds = dict.fromkeys((row["arch"], row["family"]) for row in report["rows"])
        for kind in kinds:
            rows = [row for row in report["rows"] if (row["arch"], row["family"]) == kind]
            runs = sum(len(row["M"]) for row in rows) * ways
            wrong = [row for row in rows if row["wrong"]]
            lines.append([" ".join(kind), str(len(rows)), str(runs), str(len(wrong))])
    where = dict.fromkeys(f"{report['cpu']}, {report['date']}" for report in reports)
    return f"{'; '.join(where)}.\n\n" + markdown_table(["", "configurations", "runs", "wrong"], lines)


#: Instructions that the table of resources counts: tensor cores, 16-byte loads, bulk copies, TMA tensor copies.
SASS_COLUMNS = ("HMMA", "HGMMA", "LDG.128", "LDGSTS.128", "LDS.128", "UBLKCP", "UTMALDG")


@app.command()
def merge(
    files: Annotated[list[Path], typer.Argument(help="JSON files of one device.")],
    output: Annotated[Path, typer.Option("-o", help="Where to write.")] = DEFAULT,
    note: Annotated[str, typer.Option(help="Versions of the others.")] = "",
) -> None:
    """Join measurements; of a weight and an M that occur twice, the later file's figures win."""
    reports = [json.loads(path.read_text()) for path in files]
    devices = {report["device"] for report in reports}
    if len(devices) != 1:
        raise typer.BadParameter(f"found measurements of {', '.join(sorted(devices))}, expected one device")
    rows: dict[tuple[int, int, int], Row] = {}
    for report in reports:
        for row in report["rows"]:
            key = row["N"], row["K"], row["M"]
            rows[key] = {**rows.get(key, {}), **row}
    order = {shape: i for i, shape in enumerate(dict.fromkeys(row["shape"] for row in rows.values()))}
    merged = sorted(rows.values(), key=lambda row: (order[row["shape"]], row["M"]))
    newest = max(path.stat().st_mtime for path in files)
    facts = {
        "device": devices.pop(),
        "date": datetime.fromtimestamp(newest, timezone.utc).strftime("%Y-%m-%d"),
        "copy_bytes_per_s": math.fsum(report["copy_bytes_per_s"] for report in reports) / len(reports),
        "note": note,
        "rows": merged,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(facts, indent=1) + "\n")
    print(f"{len(merged)} rows, written: {output}")


@app.callback()
def _commands() -> None:
    """Keep ``merge`` a command of its own where it is the only one."""


if __name__ == "__main__":
    app()
