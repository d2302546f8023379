"""Every outcome on disk before anything follows from it, so that a run may be killed at any moment.

JSON lines: the first says which run it is (settings, versions, device), every other one is a trial with its
outcome. A line is written whole and synchronized; what a kill leaves of an unfinished last line is cut off. A
journal of another run is refused, never mixed in.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from nvfp4_tvm.errors import DatabaseError, NVFP4Error
from nvfp4_tvm.tuning.trial import Outcome, Trial, trial_of

_TITLE = "nvfp4_tvm tuning journal"


class Journal:
    """The outcomes of one run.

    Parameters
    ----------
    path : Path
        The file; it is made where there is none.
    run : mapping
        What the outcomes depend on, as JSON; a journal that says something else is refused.

    Attributes
    ----------
    outcomes : dict of Trial to Outcome
        All there are.
    """

    def __init__(self, path: Path, run: Mapping[str, Any]) -> None:
        self.path = path
        self.outcomes: dict[Trial, Outcome] = {}
        first = json.dumps({"title": _TITLE, **run}) + "\n"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "a+b")  # noqa: SIM115  closed by close
        try:
            whole = self._read(first)
        except BaseException:
            self._file.close()
            raise
        self._file.truncate(whole)
        if not whole:
            self._append(first)

    def _read(self, first: str) -> int:
        """Read what there is and return the bytes of whole lines."""
        self._file.seek(0)
        whole = 0
        for number, line in enumerate(self._file, 1):
            if not line.endswith(b"\n"):
                break
            if number == 1:
                self._check(line, first)
            else:
                self._take(number, line)
            whole += len(line)
        return whole

    def _check(self, line: bytes, first: str) -> None:
        if line == first.encode():
            return
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict) or found.get("title") != _TITLE:
            raise DatabaseError(f"{self.path}: no tuning journal; move it away or choose another output")
        wanted = json.loads(first)
        missing = object()
        names = {**found, **wanted}
        differing = [name for name in names if found.get(name, missing) != wanted.get(name, missing)]
        if not differing:  # the same, with other spaces perhaps
            return
        name = differing[0]
        raise DatabaseError(
            f"{self.path}: the journal of another run: {name} is {_shown(found, name)}, now "
            f"{_shown(wanted, name)}; tune with the same options to continue it, or remove it to begin again"
        )

    def _take(self, number: int, line: bytes) -> None:
        try:
            raw = json.loads(line)
            trial = trial_of(raw)
            self.outcomes[trial] = Outcome.from_json(raw)
        except (ValueError, TypeError, RecursionError) as error:
            reason = str(error) if isinstance(error, NVFP4Error) else "no JSON"
            raise DatabaseError(
                f"{self.path}, line {number}: {reason}; the file is damaged, remove it to begin again"
            ) from None

    def add(self, outcomes: Mapping[Trial, Outcome]) -> None:
        """Keep some outcomes; on disk when this returns."""
        lines = []
        for trial, outcome in outcomes.items():
            values = {"time_us": outcome.time_us, "floor_us": outcome.floor_us, "error": outcome.error}
            lines.append(json.dumps({**trial.to_json(), **values}) + "\n")
        self._append("".join(lines))
        self.outcomes.update(outcomes)

    def _append(self, text: str) -> None:
        self._file.write(text.encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _shown(settings: Mapping[str, Any], name: str) -> str:
    return repr(settings[name]) if name in settings else "missing"
