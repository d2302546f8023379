"""Output folders that appear complete or not at all, and survive being killed.

A folder ``out`` is filled as ``.out.partial`` beside it and renamed when it is complete and on the disk. A lock
on ``.out.partial`` keeps a second process away; it goes when the process does, however that ends. What a killed
process left is continued by the next one that makes the same output, as the journal inside says, and else thrown
away.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvfp4_tvm.checkpoint.journal import Journal
from nvfp4_tvm.checkpoint.writer import UNFINISHED
from nvfp4_tvm.errors import OutputError, VanishedError
from nvfp4_tvm.integrity import sync

JOURNAL = ".journal"


@dataclass(frozen=True)
class Work:
    """An output being made: fill ``path``, and note finished tensors in ``journal``."""

    path: Path
    journal: Journal


def output_key(**parts: Any) -> str:
    """Return a digest of what an output depends on, any values that JSON has."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


@contextmanager
def output_folder(output: Path, key: str, *, replace: bool = False) -> Iterator[Work]:
    """Make ``output``, which must not exist or be an empty folder.

    Parameters
    ----------
    output : Path
        Its parents are created.
    key : str
        See `output_key`: the journal of another key is not continued.
    replace : bool
        Replace an existing folder, in the moment in which the new one is complete.

    Raises
    ------
    OutputError
        If it cannot be written, or another process is writing it. What is done stays for the next run then, as it
        does when the process is interrupted or its input vanishes; other errors leave nothing.
    """
    output = Path(os.path.abspath(output))
    partial, replaced = (output.with_name(f".{output.name}.{what}") for what in ("partial", "replaced"))
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir(exist_ok=True)
        lock = _lock(partial, output)
    except OSError as error:
        raise OutputError(f"{output}: cannot be written: {error.strerror or error}") from None
    try:
        _restore(output, replaced)
        if output.exists() and not replace and (not output.is_dir() or any(output.iterdir())):
            raise OutputError(f"{output}: appeared in the meantime, expected no such folder")
        journal = Journal(partial / JOURNAL, key)
        if not journal.resumed:
            _clear(partial)
        yield Work(partial, journal)
        journal.remove()
        for path in partial.glob(f".*{UNFINISHED}"):  # of a run whose work another way was found for
            path.unlink()
        sync([*(path for path in partial.rglob("*")), partial])
        if replace and output.exists():
            os.rename(output, replaced)
        os.rename(partial, output)
        sync([output.parent])
        shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        raise OutputError(
            f"{place}{output} cannot be written: {error.strerror or error}{_kept(partial)}"
        ) from None
    except (OutputError, VanishedError) as error:
        raise type(error)(f"{error}{_kept(partial)}") from None
    except KeyboardInterrupt:
        raise
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def _lock(partial: Path, output: Path) -> int:
    descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The process that held the lock may have renamed or removed the folder just now.
        held, there = os.fstat(descriptor), os.stat(partial)
        if (held.st_dev, held.st_ino) == (there.st_dev, there.st_ino):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    raise OutputError(f"{output}: another process is writing it; wait for that or choose another output")


def _restore(output: Path, replaced: Path) -> None:
    """Undo a replacement that a process died in the middle of."""
    if replaced.exists() and not output.exists():
        os.rename(replaced, output)
    shutil.rmtree(replaced, ignore_errors=True)


def _clear(partial: Path) -> None:
    for path in partial.iterdir():
        if path.name == JOURNAL:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _kept(partial: Path) -> str:
    """Say where unfinished work is, or remove it if there is none."""
    journal = partial / JOURNAL
    try:
        started = journal.read_bytes().count(b"\n") > 1
    except OSError:
        started = False
    if started:
        return f"; what is done stays in {partial}: run the same again to continue, or delete it"
    shutil.rmtree(partial, ignore_errors=True)
    return ""
