"""Join databases of ``nvfp4-tvm tune`` into one that the package ships.

    python -m benchmarks.ship_records a.jsonl b.jsonl --leave-out 9216x3072 -o schedules/database/sm_90.jsonl

Of a shape that several databases have, the last one's records count. ``--leave-out`` drops shapes that are kept to
measure what an untuned one loses (`benchmarks.tuning_gain`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from benchmarks.shapes import parse_shapes
from nvfp4_tvm.schedules.records import Database


def joined(databases: Sequence[Database], leave_out: Collection[tuple[int, int]] = ()) -> Database:
    """Return the records of all databases but those of some shapes, sorted."""
    found = Database()
    for database in databases:
        found = found.merged(r for r in database.records if (r.N, r.K) not in leave_out)
    return found


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("databases", type=Path, nargs="+")
    parser.add_argument("--leave-out", type=parse_shapes, default="", help="NxK,...")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    database = joined([Database.read(path) for path in arguments.databases], arguments.leave_out)
    database.write(arguments.output)
    shapes = {(record.N, record.K) for record in database.records}
    print(f"{len(database.records)} records of {len(shapes)} shapes: {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
