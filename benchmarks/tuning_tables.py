"""Tables of the documentation about tuning: what it gains, and where kernels change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks import tuning_gain
from benchmarks.gemm_bars import geometric_mean
from benchmarks.markdown import markdown_table

Report = dict[str, Any]


#: Beyond so many shapes a table has a line for each M, not for each shape.
SHAPES = 12


def gain(reports: Sequence[Report]) -> str:
    """Return one table a file that `benchmarks.tuning_gain` wrote."""
    parts = []
    for report in reports:
        rows = report["rows"]
        shapes, Ms = {row["shape"] for row in rows}, sorted({row["M"] for row in rows})
        where = f"{report['device']}, {report['date']}, {report['source']}, {len(shapes)} shapes"
        ratios = (
            f"{where}: times of the defaults and of what near shapes suggest over those of the tuned kernels, "
            "geometric mean"
        )
        if len(shapes) > SHAPES:
            parts.append(f"{ratios} over the shapes, and the largest with its shape.\n\n" + by_rows(rows))
        else:
            parts.append(
                f"{ratios} over M = {', '.join(map(str, Ms))} and the largest; "
                "times of the tuned kernels over the floor, the least.\n\n" + tuning_gain.table(rows)
            )
    return "\n".join(parts)


def by_rows(rows: Sequence[dict[str, Any]]) -> str:
    """Return, by M and over all, what tuning gains and what a shape without records of its own loses."""
    lines = []
    for M in (*sorted({row["M"] for row in rows}), None):
        line = ["all" if M is None else str(M)]
        for way in ("default", "untuned"):
            found = [
                (row[f"{way}_us"] / row["tuned_us"], row["shape"])
                for row in rows
                if M in (None, row["M"]) and row.get(f"{way}_us") and row.get("tuned_us")
            ]
            most, shape = max(found)
            line += [f"{geometric_mean([ratio for ratio, _ in found]):.3f}", f"{most:.3f} ({shape})"]
        lines.append(line)
    return markdown_table(["M", "default / tuned", "most", "untuned / tuned", "most"], lines)


def records(reports: Sequence[Report]) -> str:
    """Return one table a file that `benchmarks.ship_records` summarized: where another kernel begins."""
    parts = []
    for report in reports:
        lines = [
            [row["shape"], str(row["records"]), ", ".join(map(str, row["changes"]))] for row in report["rows"]
        ]
        where = dict.fromkeys(f"{row['device']}, {row['source']}, {row['date']}" for row in report["rows"])
        parts.append(
            f"{report['arch']}: {'; '.join(where)}. M at which another kernel begins; where no record holds, the "
            "families' own choice does.\n\n"
            + markdown_table(["N x K", "records", "another kernel from M"], lines)
        )
    return "\n".join(parts)
