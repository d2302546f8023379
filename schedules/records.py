"""Tuning records and the database they are kept in: JSON lines.

The first line says what the file is and which versions it is for; every other one is a record: a problem
(architecture, dtype of the activations, N, K, range of M, epilogue), the family and configuration it gets, how
long that took, the floor beside it, and where the figure is from: ``measured`` with device and date, or
``predicted`` with the card.

Why not MetaSchedule's JSONDatabase: it finds records by the hash of a module with static shapes (``ArgInfo`` of
TVM 0.27 refuses a symbolic M), so one kernel for a range of M has no key in it; kernels written in TVMScript
have no trace to store; its two files are tied together by line numbers, which a line lost to a kill shifts; and
a record holds no versions, no provenance and nothing a review can read. A trace of the scheduled family is its
decisions, which `nvfp4_tvm.schedules.space_mma.scheduled` turns back into the trace.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nvfp4_tvm._pins import TVM_VERSION
from nvfp4_tvm.arch import ARCHS, get_arch
from nvfp4_tvm.errors import DatabaseError, NVFP4Error
from nvfp4_tvm.layout import LAYOUT_VERSION
from nvfp4_tvm.schedules.base import TENSOR_CORE_DTYPES, MatmulProblem, MRange
from nvfp4_tvm.schedules.space import Config, decode, encode
from nvfp4_tvm.schedules.spaces import space_of

#: Version of the fields below; a reader of an older one refuses the file.
FORMAT_VERSION = 1
_TITLE = "nvfp4_tvm tuning records"
MEASURED, PREDICTED = "measured", "predicted"
#: Activations that tuned kernels take.
DTYPES = TENSOR_CORE_DTYPES


def epilogue_kind(problem: MatmulProblem) -> str:
    """Return what follows the products, such as ``plain``, ``bias+silu_mul`` or ``float32``."""
    parts = ["bias"] * problem.bias + ["residual"] * problem.residual
    parts += [problem.activation] if problem.activation else []
    parts += [problem.out_dtype] if problem.out_dtype != problem.x_dtype else []
    return "+".join(parts) or "plain"


@dataclass(frozen=True)
class Record:
    """What a problem gets.

    Attributes
    ----------
    arch, x_dtype : str
        ``sm_90``; ``bfloat16`` or ``float16``.
    N, K : int
        Shape of the weight before padding.
    M : MRange
        Rows of activations.
    epilogue : str
        `epilogue_kind`.
    family : str
        Name of the kernel family.
    config : object
        Its configuration.
    judged_at : int
        Rows that it was chosen at.
    time_us, floor_us : float
        Time of a call there, and the time to move its bytes at the speed of a copy.
    trials : int
        Configurations that were compared.
    source : str
        ``measured`` or ``predicted``.
    device : str
        What it was measured on, or predicted for.
    date : str
        Day, ``2026-11-22``.
    """

    arch: str
    x_dtype: str
    N: int
    K: int
    M: MRange
    epilogue: str
    family: str
    config: Config
    judged_at: int
    time_us: float
    floor_us: float
    trials: int
    source: str
    device: str
    date: str

    @property
    def problem(self) -> tuple[str, str, str, int, int]:
        """Architecture, dtype, epilogue, N and K: records of one problem differ in M."""
        return self.arch, self.x_dtype, self.epilogue, self.N, self.K

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON."""
        other = {"low": self.M.low, "high": self.M.high, "config": encode(self.config)}
        return {name: other[name] if name in other else getattr(self, name) for name in _FIELDS}

    @classmethod
    def from_json(cls, raw: object) -> Record:
        """Read and check a record.

        Raises
        ------
        NVFP4Error
            If a field is missing or wrong, or the configuration may not be used for the problem.
        """
        if not isinstance(raw, dict) or set(raw) != set(_FIELDS):
            found = sorted(raw) if isinstance(raw, dict) else type(raw).__name__
            raise NVFP4Error(f"found {found!s:.200}, expected the fields {', '.join(_FIELDS)}")
        for name, kinds in _FIELDS.items():
            if type(raw[name]) not in kinds:
                raise NVFP4Error(f"{name} is {raw[name]!r:.80}, expected {kinds[0].__name__}")
            # NaN compares false with everything
            if isinstance(raw[name], (int, float)) and not 0 <= raw[name] < MAX_NUMBER:
                raise NVFP4Error(f"{name} is {raw[name]!r:.80}, expected 0 to {MAX_NUMBER}")
        if raw["arch"] not in ARCHS or raw["x_dtype"] not in DTYPES:
            raise NVFP4Error(f"found {raw['arch']!r:.80}, {raw['x_dtype']!r:.80}: no such kernels")
        if raw["source"] not in (MEASURED, PREDICTED):
            raise NVFP4Error(f"source is {raw['source']!r:.80}, expected {MEASURED} or {PREDICTED}")
        values = {name: value for name, value in raw.items() if name not in ("low", "high")}
        M = MRange(raw["low"], raw["high"])
        MatmulProblem(raw["N"], raw["K"], M)  # checks the shape
        space = space_of(raw["family"])
        config = decode(space, raw["config"])
        if not space.legal(config, raw["N"], raw["K"], M, get_arch(raw["arch"])):
            raise NVFP4Error(
                f"{config} is not in the space of {space.name} for {raw['N']}x{raw['K']}, M {M} on {raw['arch']}"
            )
        return cls(**{**values, "M": M, "config": config})


#: Sizes, times and counts in files are below: no weight has 2**31 rows.
MAX_NUMBER = 2**31
#: A database with a record for each range of M of a thousand shapes has 3 MB.
MAX_BYTES = 64 << 20
#: Fields of a line in order, and the types each may have.
_FIELDS: dict[str, tuple[type, ...]] = {
    "arch": (str,),
    "x_dtype": (str,),
    "epilogue": (str,),
    "N": (int,),
    "K": (int,),
    "low": (int,),
    "high": (int, type(None)),
    "family": (str,),
    "config": (dict,),
    "judged_at": (int,),
    "time_us": (float, int),
    "floor_us": (float, int),
    "trials": (int,),
    "source": (str,),
    "device": (str,),
    "date": (str,),
}


def header() -> dict[str, Any]:
    """Return the first line of a database of this installation."""
    return {
        "title": _TITLE,
        "format_version": FORMAT_VERSION,
        "layout_version": LAYOUT_VERSION,
        "tvm_version": TVM_VERSION,
    }


@dataclass(frozen=True)
class Database:
    """Records, and where they are from.

    Attributes
    ----------
    records : tuple of Record
        Ranges of M of one problem do not overlap.
    path : Path or None
        The file.
    """

    records: tuple[Record, ...] = ()
    path: Path | None = None
    digest: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        ordered = sorted(self.records, key=lambda record: (*record.problem, record.M.low))
        for record, other in itertools.pairwise(ordered):
            if record.problem == other.problem and (record.M.high is None or other.M.low <= record.M.high):
                raise DatabaseError(
                    f"{self.path or 'records'}: {record.N}x{record.K} has two records for M {record.M} and "
                    f"{other.M}, expected ranges apart; tune it again"
                )
        object.__setattr__(self, "digest", hashlib.sha256("".join(self.lines()).encode()).hexdigest())

    def lines(self) -> Iterator[str]:
        """Yield the lines of the file."""
        yield json.dumps(header()) + "\n"
        for record in self.records:
            yield json.dumps(record.to_json()) + "\n"

    @classmethod
    def read(cls, path: Path | str) -> Database:
        """Read and check a database.

        Raises
        ------
        DatabaseError
            If it cannot be read, is something else, is damaged, or is for other versions.
        """
        path = Path(path)
        try:
            if path.stat().st_size > MAX_BYTES:
                raise DatabaseError(
                    f"{path}: found more than {MAX_BYTES} bytes, expected no more in a database"
                )
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DatabaseError(f"{path}: cannot be read as a tuning database: {error}") from None
        first = _parsed(path, 1, lines[0]) if lines else None
        if not isinstance(first, dict) or first.get("title") != _TITLE:
            raise DatabaseError(f"{path}: no tuning database; expected a file that `nvfp4-tvm tune` wrote")
        for name, expected in header().items():
            if first.get(name) != expected:
                raise DatabaseError(
                    f"{path}: {name} is {first.get(name)!r:.80}, expected {expected!r} here; tune again"
                )
        records = []
        for number, line in enumerate(lines[1:], 2):
            try:
                records.append(Record.from_json(_parsed(path, number, line)))
            except DatabaseError:
                raise
            except NVFP4Error as error:
                raise DatabaseError(f"{path}, line {number}: {error}; tune it again") from None
        return cls(tuple(records), path)

    def write(self, path: Path | str) -> None:
        """Write the file, whole or not at all."""
        write_atomically(Path(path), "".join(self.lines()))

    def merged(self, newer: Iterable[Record]) -> Database:
        """Return the database with the records of some problems replaced, sorted."""
        newer = tuple(newer)
        replaced = {record.problem for record in newer}
        kept = tuple(record for record in self.records if record.problem not in replaced)
        return Database(tuple(sorted(kept + newer, key=lambda r: (*r.problem, r.M.low))))

    @contextmanager
    def active(self) -> Iterator[None]:
        """Let the dispatch consult this database first while the context lasts, in this thread."""
        token = _ACTIVE.set(self)
        try:
            yield
        finally:
            _ACTIVE.reset(token)


_ACTIVE: ContextVar[Database | None] = ContextVar("tuning database", default=None)


def active_database() -> Database | None:
    """Return the database of the innermost `Database.active`."""
    return _ACTIVE.get()


def write_atomically(path: Path, text: str) -> None:
    """Write a file that appears complete or not at all, also if the machine stops."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _parsed(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        raise DatabaseError(
            f"{path}, line {number}: no JSON, found {line[:40]!r}; the file is damaged"
        ) from None
