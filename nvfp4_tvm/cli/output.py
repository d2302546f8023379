"""What the commands share: consoles, progress bars, one-line messages, JSON, logging."""

from __future__ import annotations

import json
import logging
import re
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

#: Everything but results goes here: progress, warnings, errors. Rich looks up ``sys.stderr`` at each use.
stderr = Console(stderr=True, highlight=False)

PROGRAM = "nvfp4-tvm"
#: Called with a stage's name, steps done and steps in all; `nvfp4_tvm.compiler.Progress`.
Report = Callable[[str, int, int], None]


def one_line(text: object) -> str:
    """Return ``text`` on one line, its unprintable characters escaped.

    Names of tensors come from files; a newline or an escape sequence in one must not reach the terminal.
    """
    joined = " ".join(str(text).split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in joined)


def say(level: str, message: object) -> None:
    """Print ``nvfp4-tvm: level: message`` on stderr, however long, on one line."""
    stderr.print(Text(f"{PROGRAM}: {level}: {one_line(message)}"), soft_wrap=True)


class _Handler(logging.Handler):
    """Log lines through `say`, so that a progress bar on the same terminal stays whole."""

    def emit(self, record: logging.LogRecord) -> None:
        say(record.levelname.lower(), record.getMessage())


def set_up_logging() -> None:
    """Show the package's warnings on stderr."""
    logger = logging.getLogger("nvfp4_tvm")
    if not any(isinstance(handler, _Handler) for handler in logger.handlers):
        logger.addHandler(_Handler())


def _set_verbosity(value: bool) -> bool:
    if value:
        logging.getLogger("nvfp4_tvm").setLevel(logging.INFO)
    return value


Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose", "-v", callback=_set_verbosity, help="Log what is done, kernels chosen included."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]


def print_json(value: Any) -> None:
    """Print ``value`` on stdout as one line of ASCII JSON, paths as strings."""
    sys.stdout.write(json.dumps(value, default=str) + "\n")


def stdout_console() -> Console:
    """Return a console for results; off a terminal it is as wide as a line needs, so that nothing is cut."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=10_000)


def human_bytes(count: int) -> str:
    """Return a size in the unit that reads best, in powers of 1000 as safetensors shards and disks count.

    >>> human_bytes(999), human_bytes(1234), human_bytes(5_600_000_000)
    ('999 B', '1.2 kB', '5.6 GB')
    """
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.95:
            return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def peak_bytes() -> int:
    """Return the most memory that the process has held at once, mapped files included."""
    # Not getrusage: on Linux its maximum survives exec, so that a large parent would be counted.
    try:
        (line,) = re.findall(r"^VmHWM:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
        return 1024 * int(line)
    except (OSError, ValueError):
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def summary(read: int, written: int, seconds: float) -> str:
    """Return what a command moved, how fast, and in how much memory."""
    rate = human_bytes(int(read / max(seconds, 1e-9)))
    return (
        f"{human_bytes(read)} read, {human_bytes(written)} written, {rate}/s, "
        f"peak memory {human_bytes(peak_bytes())}"
    )


#: Stages whose steps are bytes; they show a rate and the time that is left.
_BYTES = frozenset({"hash", "pack", "quantize"})


@contextmanager
def progress(quiet: bool) -> Iterator[Report]:
    """Show one bar a stage on stderr while the context lasts; nothing if ``quiet`` or off a terminal."""
    if quiet or not stderr.is_terminal:
        yield lambda stage, done, total: None
        return
    from rich.progress import (
        BarColumn,
        Progress,
        ProgressColumn,
        Task,
        TaskID,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
    )

    class Rate(ProgressColumn):
        """Speed and remaining time of stages that count bytes."""

        def render(self, task: Task) -> Text:
            if task.description not in _BYTES or not task.speed or task.total is None:
                return Text("")
            left = "" if task.time_remaining is None else f", {task.time_remaining:.0f} s left"
            return Text(f"{human_bytes(int(task.speed))}/s{left}")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        Rate(),
    )
    with Progress(*columns, console=stderr) as bars:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            # A stage of one or two steps has no speed to show: its bar pulses until it is done.
            known = total if total > 2 or done >= total else None
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=known)
            bars.update(tasks[stage], completed=done, total=known)

        yield report


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files in ``folder`` itself."""
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
