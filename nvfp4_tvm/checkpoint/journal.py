"""What of an unfinished output is written already, so that a killed run can be continued.

A file of JSON lines: the first names what is being made, each further one a tensor that is in its file, and its
digest. A line is written after its tensor. Nothing is taken on trust: who continues reads the tensor and compares.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

#: Changes with the meaning of the lines.
_FORMAT = 1
#: A digest's line is some hundred bytes, a model has some thousand tensors.
_MAX_BYTES = 64 << 20


class Journal:
    """The journal of one output folder.

    Parameters
    ----------
    path : Path
        Kept if it is of the same ``key``, else begun anew.
    key : str
        Identifies the output: inputs, options, versions.

    Attributes
    ----------
    resumed : bool
        Whether it was kept.
    done : dict of str to str
        Tensors written, and their digests.
    """

    def __init__(self, path: Path, key: str):
        self.done: dict[str, str] = {}
        self._path = path
        lines = self._lines()
        self.resumed = bool(lines) and lines[0] == {"format": _FORMAT, "key": key}
        if not self.resumed:
            path.write_text(json.dumps({"format": _FORMAT, "key": key}) + "\n")
            return
        self.done.update((line["name"], line["digest"]) for line in lines[1:])
        if not path.read_bytes().endswith(b"\n"):  # what was being written when the process died
            with path.open("ab") as file:
                file.write(b"\n")

    def _lines(self) -> list[dict[str, Any]]:
        try:
            if self._path.stat().st_size > _MAX_BYTES:
                return []
            text = self._path.read_text(errors="replace")
        except OSError:
            return []
        lines: list[dict[str, Any]] = []
        for line in text.splitlines():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                continue  # torn: its tensor is written again
            if isinstance(value, dict) and (
                not lines or all(isinstance(value.get(field), str) for field in ("name", "digest"))
            ):
                lines.append(value)
        return lines

    def add(self, name: str, digest: str) -> None:
        """Note that a tensor is in its file."""
        self.done[name] = digest
        with self._path.open("a") as file:
            file.write(json.dumps({"name": name, "digest": digest}) + "\n")

    def remove(self) -> None:
        """Delete the journal: the output is complete."""
        self._path.unlink(missing_ok=True)
