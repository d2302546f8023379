"""What every committed figure is recorded with: machine, date, versions, command."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("apache-tvm", "apache-tvm-ffi", "numpy", "torch", "transformers", "safetensors")


def cpu_name() -> str:
    """Return the processor's model name, or what the platform module knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def gpu_name() -> str | None:
    """Return the first GPU's name and driver, or None."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def environment() -> dict[str, Any]:
    """Return the fields that surround the rows of a result."""
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "gpu": gpu_name(),
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "versions": _versions(),
        "command": shlex.join(["python", *(_relative(argument) for argument in sys.argv)]),
    }


def _relative(argument: str) -> str:
    # Paths outside the repository are the machine's business, not the reader's.
    path = Path(argument)
    if not path.is_absolute():
        return argument
    root = Path(__file__).resolve().parents[1]
    return str(path.relative_to(root)) if path.is_relative_to(root) else path.name


def write(path: Path, rows: list[dict[str, Any]], **more: Any) -> None:
    """Write rows with their environment as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**environment(), **more, "rows": rows}, indent=1) + "\n")
