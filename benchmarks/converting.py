"""All figures of converting checkpoints in one run: each step beside its baselines, then whole models.

    python benchmarks/converting.py [--results benchmarks/results] [--folder FOLDER] [--quick]

Runs `benchmarks/convert.py` (repack and quantizing beside ``memcpy``, NumPy and PyTorch), `benchmarks/quantize.py`
(the command on a checkpoint of 1.3 GB), `benchmarks/compile_time.py` and ``benchmarks/large_models.py --all``,
writes their files, and prints the tables that `docs/make_tables.py` makes of them. It takes twenty minutes on two
cores, and 60 GB of disk in ``--folder``; ``--quick`` leaves out the last two.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.record import RESULTS  # noqa: E402
from docs.make_tables import table  # noqa: E402


def commands(results: Path, folder: str | None, quick: bool) -> list[list[str]]:
    """Return what to run, in order."""
    runs = [
        ["benchmarks/convert.py", "--json", str(results / "convert_cpu.json")],
        ["benchmarks/quantize.py", "--json", str(results / "quantize_cpu.json")],
    ]
    if not quick:
        runs.append(["benchmarks/compile_time.py", "--json", str(results / "compile_time_cpu.json")])
        where = [] if folder is None else ["--folder", folder]
        runs.append(["benchmarks/large_models.py", "--all", "--results", str(results), *where])
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument(
        "--folder", help="where to put checkpoints and outputs; by default the temporary folder"
    )
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    results = arguments.results.resolve()
    for command in commands(results, arguments.folder, arguments.quick):
        print("python", *command, flush=True)
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
    for name in ("convert", "quantize", "compile_time", "large_models"):
        print(f"\n{table(name, results)}")


if __name__ == "__main__":
    main()
