"""Join databases of ``nvfp4-tvm tune`` into one that the package ships.

    python -m benchmarks.ship_records a.jsonl b.jsonl --leave-out 9216x3072 -o schedules/database/sm_90.jsonl

Of a shape that several databases have, the last one's records count. ``--leave-out`` drops shapes that are kept
to measure what an untuned one loses (`benchmarks.tuning_gain`); predicted records of the GEMV are dropped as
well. ``--summary`` writes a row a shape: where kernels change.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.shapes import parse_shapes
from nvfp4_tvm.schedules.gemv import Gemv
from nvfp4_tvm.schedules.records import PREDICTED, Database, Record


def unfounded(record: Record) -> bool:
    """Whether a record is a predicted GEMV.

    Logarithms of that family's times scatter by 0.23 around its model (:mod:`.space_gemv`), which is as much as a
    prediction must gain, and some of its kernels spill registers. Its own choices were measured on an H200.
    """
    return record.source == PREDICTED and record.family == Gemv.name


def joined(databases: Sequence[Database], leave_out: Collection[tuple[int, int]] = ()) -> Database:
    """Return the records of all databases but those of some shapes, sorted."""
    found = Database()
    for database in databases:
        found = found.merged(r for r in database.records if (r.N, r.K) not in leave_out and not unfounded(r))
    return found


def summary(database: Database) -> list[dict[str, Any]]:
    """Return a row for every shape: its records, the M at which its kernel changes, where the figures are from."""
    rows = []
    for N, K in dict.fromkeys((r.N, r.K) for r in database.records):
        of = sorted((r for r in database.records if (r.N, r.K) == (N, K)), key=lambda r: r.M.low)
        # Between two records the families choose
        gaps = [a.M.high + 1 for a, b in pairwise(of) if a.M.high is not None and a.M.high + 1 < b.M.low]
        changes = sorted({*(r.M.low for r in of if r.M.low > 1), *gaps})
        where = {name: getattr(of[-1], name) for name in ("device", "source", "date")}
        rows.append({"shape": f"{N}x{K}", "records": len(of), "changes": changes, **where})
    return rows


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("databases", type=Path, nargs="+")
    parser.add_argument("--leave-out", type=parse_shapes, default="", help="NxK,...")
    parser.add_argument("--summary", type=Path, help="JSON")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    database = joined([Database.read(path) for path in arguments.databases], arguments.leave_out)
    database.write(arguments.output)
    if arguments.summary:
        record.write(arguments.summary, summary(database), arch=database.records[0].arch)
    shapes = {(r.N, r.K) for r in database.records}
    print(f"{len(database.records)} records of {len(shapes)} shapes: {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
