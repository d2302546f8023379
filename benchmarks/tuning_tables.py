"""Tables of the documentation about tuning: what it gains, and where kernels change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks import tuning_gain
from benchmarks.markdown import markdown_table

Report = dict[str, Any]


def gain(reports: Sequence[Report]) -> str:
    """Return one table a file that `benchmarks.tuning_gain` wrote."""
    parts = []
    for report in reports:
        rows = sorted({row["M"] for row in report["rows"]})
        where = f"{report['device']}, {report['date']}, {report['source']}"
        parts.append(
            f"{where}: times of the defaults and of what near shapes suggest over those of the tuned kernels, "
            f"geometric mean over M = {', '.join(map(str, rows))} and the largest; "
            "times of the tuned kernels over the floor, the least.\n\n" + tuning_gain.table(report["rows"])
        )
    return "\n".join(parts)


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
