"""Fuzz the readers of files with atheris, guided by coverage, for as long as one likes.

Needs ``pip install '.[fuzz]'``.

    python benchmarks/fuzz.py [--targets header,modelopt] [--minutes 10] [--json benchmarks/results/fuzz.json]

The targets are those of `tests/helpers/fuzz_targets.py`, which the tests feed ten thousand cases a run; the corpus
starts with some of these. Each target runs in a process of its own, within 2 GB of memory and 20 seconds a case.
What crashes one is left in ``--crashes``, and belongs into `tests/nvfp4_tvm/test_hostile_input.py` when it is
fixed.
"""

from __future__ import annotations

import argparse
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
for folder in (ROOT, ROOT / "tests" / "helpers", ROOT / "tests" / "nvfp4_tvm"):
    sys.path.insert(0, str(folder))

from benchmarks.record import write  # noqa: E402

#: Cases of the tests that a corpus starts with.
SEEDS = 50
LIMITS = ("-timeout=20", "-rss_limit_mb=2048", "-max_len=8192", "-print_final_stats=1")


def run_one(target: str, corpus: str, crashes: str, seconds: str) -> None:
    """Fuzz one target in this process, which ends in it."""
    import atheris

    with atheris.instrument_imports(include=["nvfp4_tvm"]):
        import fuzz_targets
    from test_hostile_input import CASES

    rng, (_, case) = random.Random(0), CASES[target]
    for number in range(SEEDS):
        (Path(corpus) / str(number)).write_bytes(case(rng))
    function = fuzz_targets.TARGETS[target]
    options = [f"-artifact_prefix={crashes}/{target}-", f"-max_total_time={seconds}", *LIMITS]
    atheris.Setup([sys.argv[0], *options, corpus], lambda data: function(data) and None)
    atheris.Fuzz()


def fuzz(target: str, crashes: Path, seconds: int) -> dict[str, object]:
    """Fuzz one target; return how many inputs it was given, and what libFuzzer found."""
    with tempfile.TemporaryDirectory() as corpus:
        command = [sys.executable, __file__, "--one", target, corpus, str(crashes), str(seconds)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        kept = sum(1 for _ in Path(corpus).iterdir())
    text = result.stderr
    executions = re.search(r"stat::number_of_executed_units: (\d+)", text)
    peak = re.search(r"stat::peak_rss_mb: +(\d+)", text)
    coverage = re.findall(r"cov: (\d+)", text)
    if executions is None or result.returncode:
        print(text[-3000:], file=sys.stderr)
    return {
        "target": target,
        "seconds": seconds,
        "executions": int(executions[1]) if executions else None,
        "corpus": kept,
        "coverage": int(coverage[-1]) if coverage else None,
        "peak_mb": int(peak[1]) if peak else None,
        "clean": result.returncode == 0,
    }


def main() -> int:
    if sys.argv[1:2] == ["--one"]:  # before anything that is to be instrumented is imported
        run_one(*sys.argv[2:])
        return 0
    from fuzz_targets import TARGETS

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--minutes", type=float, default=10, help="of all targets together")
    parser.add_argument("--crashes", type=Path, default=ROOT / "build" / "fuzz")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    arguments.crashes.mkdir(parents=True, exist_ok=True)
    names, rows = arguments.targets.split(","), []
    for name in names:
        rows.append(fuzz(name, arguments.crashes, max(1, round(60 * arguments.minutes / len(names)))))
        print(rows[-1], flush=True)
    print(f"{sum(row['executions'] or 0 for row in rows)} executions")
    if arguments.json:
        write(arguments.json, rows)
    return 0 if all(row["clean"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
