"""Guard against regressions: compare two results, fail where a geometric mean became worse by more than 3 %.

    python -m benchmarks.check OLD.json NEW.json

Rows are matched by what identifies them (every field that is text, or a whole number such as N, K, M), figures by
their names: those that end in ``_us``, ``_ms`` or ``_seconds`` should fall, those that end in ``_per_s`` should
rise. A figure that one side lacks or refused does not count; a row that disappeared is a failure.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gemm_bars import geometric_mean
from benchmarks.markdown import markdown_table

#: Change of a geometric mean that fails.
LIMIT = 0.03
FALLING, RISING = ("_us", "_ms", "_seconds"), ("_per_s",)
#: What others need is theirs, and a floor is no measurement.
IGNORED = ("floor_us",)

Row = dict[str, Any]
Key = tuple[tuple[str, Any], ...]


def is_figure(name: str, value: Any) -> bool:
    """Whether a field is compared."""
    number = isinstance(value, float | int) and not isinstance(value, bool)
    return number and name.endswith((*FALLING, *RISING)) and name not in IGNORED


def key(row: Row) -> Key:
    """Return what identifies a row."""
    names = (n for n, v in row.items() if not n.endswith((*FALLING, *RISING, "_err", "_share")))
    return tuple(sorted((n, row[n]) for n in names if type(row[n]) in (str, int, bool)))


def changes(old: Sequence[Row], new: Sequence[Row]) -> tuple[dict[str, list[float]], list[Key]]:
    """Return by figure how many times better each row became, and the rows that are no more there."""
    after = {key(row): row for row in new}
    found: dict[str, list[float]] = {}
    missing = []
    for row in old:
        other = after.get(key(row))
        if other is None:
            missing.append(key(row))
            continue
        for name, value in row.items():
            if is_figure(name, value) and is_figure(name, other.get(name)):
                better = value / other[name] if name.endswith(FALLING) else other[name] / value
                found.setdefault(name, []).append(better)
    return found, missing


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--limit", type=float, default=LIMIT, help="change that fails, default 0.03")
    parser.add_argument("--only", help="compare the figures whose names begin so, such as nvfp4_tvm")
    options = parser.parse_args(arguments)
    old, new = (json.loads(path.read_text())["rows"] for path in (options.old, options.new))
    found, missing = changes(old, new)
    if options.only:
        found = {name: values for name, values in found.items() if name.startswith(options.only)}
    if not found:
        print("no figure is in both files")
        return 1
    means = {name: geometric_mean(values) for name, values in found.items()}
    worse = [name for name, mean in means.items() if mean < 1 - options.limit]
    rows = [
        [
            name,
            str(len(found[name])),
            f"{mean:.3f}",
            f"{min(found[name]):.3f}",
            "worse" if name in worse else "",
        ]
        for name, mean in means.items()
    ]
    print(markdown_table(["", "rows", "times as good", "least", ""], rows))
    for row in missing:
        print(f"missing: {', '.join(f'{name}={value}' for name, value in row)}")
    return int(bool(worse or missing))


if __name__ == "__main__":
    sys.exit(main())
