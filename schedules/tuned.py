"""What tuning records say about a problem: the exact shape's, else what its nearest shapes suggest.

A shape without records takes, in every range of M, the configuration that should be fastest for it among those
of its nearest shapes: the recorded time is scaled by the ratio that the family's model
(:meth:`.space.Space.time`) gives for the two shapes, which counts waves over the SMs, stages along K and bytes.
Shapes are near if N and K differ by a factor of at most `NEAR` together. Predicted records say nothing of other
shapes: that would be a prediction of a prediction. Where there is nothing near, the families choose by themselves.

Records for another epilogue or the other 16-bit dtype serve where there is none of the problem's own: the main
loop is the same. A configuration is checked against its space for the shape it is used for.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from nvfp4_tvm.arch import Arch, get_arch
from nvfp4_tvm.errors import DatabaseError
from nvfp4_tvm.schedules.base import MatmulProblem, MRange
from nvfp4_tvm.schedules.records import DTYPES, MEASURED, Database, Record, active_database, epilogue_kind
from nvfp4_tvm.schedules.space import Config, judged_at
from nvfp4_tvm.schedules.spaces import space_of

logger = logging.getLogger(__name__)

SHIPPED = Path(__file__).parent / "database"
#: Shapes further apart than this factor, in N and K together, say nothing about each other.
NEAR = 4.0
#: So many shapes are asked.
NEIGHBOURS = 3


@dataclass(frozen=True)
class Choice:
    """A configuration for a range of M, and the record it is from."""

    M: MRange
    family: str
    config: Config
    record: Record


@cache
def shipped(arch: str) -> Database:
    """Return the database that comes with the package; empty, with a warning, if it cannot be used."""
    path = SHIPPED / f"{arch}.jsonl"
    if not path.exists():
        return Database()
    try:
        return Database.read(path)
    except DatabaseError as error:
        logger.warning("%s: kernels are chosen by the families' own models", error)
        return Database()


def databases(arch: str) -> tuple[Database, ...]:
    """Return the databases to consult, in order: the active one (`Database.active`), the shipped one."""
    active = active_database()
    return (shipped(arch),) if active is None else (active, shipped(arch))


def digest(arch: str) -> str:
    """Return what identifies the databases that a build for an architecture consults."""
    return " ".join(database.digest for database in databases(arch))


def choices(problem: MatmulProblem, arch: str) -> tuple[Choice, ...]:
    """Return what records say about a problem's shape: ranges of M in order, with gaps where they say nothing."""
    return choices_from(problem, arch, databases(arch))


def choices_from(problem: MatmulProblem, arch: str, consulted: tuple[Database, ...]) -> tuple[Choice, ...]:
    """Return what `choices` does, from given databases instead of those that a build consults."""
    if problem.x_dtype not in DTYPES:
        return ()
    return _choices(problem.N, problem.K, problem.x_dtype, epilogue_kind(problem), arch, consulted)


def provenance(problems: Iterable[MatmulProblem], arch: str) -> tuple[str, ...]:
    """Return what chooses the kernels of some problems, such as ``predicted for GeForce RTX 4090``, each once."""
    found = set()
    for problem in problems:
        records = [choice.record for choice in choices(problem, arch)]
        for record in records:
            on = "on" if record.source == MEASURED else "for"
            found.add(f"records {record.source} {on} {record.device}")
        if not records:
            found.add("the families' own models")
    return tuple(sorted(found))


@lru_cache(maxsize=1024)
def _choices(
    N: int, K: int, x_dtype: str, epilogue: str, arch: str, consulted: tuple[Database, ...]
) -> tuple[Choice, ...]:
    for database in consulted:
        exact = _for_variant(
            (r for r in database.records if (r.arch, r.N, r.K) == (arch, N, K)), x_dtype, epilogue
        )
        if exact:
            return tuple(Choice(r.M, r.family, r.config, r) for r in exact)
    for database in consulted:
        found = _from_neighbours(N, K, x_dtype, epilogue, get_arch(arch), database)
        if found:
            return found
    return ()


def _for_variant(records: Iterator[Record], x_dtype: str, epilogue: str) -> list[Record]:
    """Return the records of one dtype and epilogue: the best match there is, by M."""
    variants: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        variants.setdefault((record.epilogue, record.x_dtype), []).append(record)
    if not variants:
        return []
    best = min(variants, key=lambda v: (v[0] != epilogue, v[0] != "plain", v[1] != x_dtype, v))
    return sorted(variants[best], key=lambda record: record.M.low)


def distance(N: int, K: int, other_N: int, other_K: int) -> float:
    """Return how far two shapes are apart: the product of the factors in N and in K, as a logarithm."""
    return abs(math.log(N / other_N)) + abs(math.log(K / other_K))


def neighbours(
    N: int, K: int, x_dtype: str, epilogue: str, arch: str, database: Database
) -> list[list[Record]]:
    """Return the measured records of the nearest shapes of a database, nearest first, each shape's by M."""
    by_shape: dict[tuple[int, int], list[Record]] = {}
    for record in database.records:
        if record.arch == arch and record.source == MEASURED:
            by_shape.setdefault((record.N, record.K), []).append(record)
    near = sorted(
        (away, shape) for shape in by_shape if (away := distance(N, K, *shape)) <= math.log(NEAR) + 1e-9
    )
    return [_for_variant(iter(by_shape[shape]), x_dtype, epilogue) for _, shape in near[:NEIGHBOURS]]


def _from_neighbours(
    N: int, K: int, x_dtype: str, epilogue: str, arch: Arch, database: Database
) -> tuple[Choice, ...]:
    near = neighbours(N, K, x_dtype, epilogue, arch.name, database)
    chosen: list[Choice] = []
    for part in _parts([record.M for records in near for record in records]):
        best = _best(N, K, part, arch, [r for records in near for r in records if _holds(r.M, part)])
        if best is None:
            continue
        last = chosen[-1] if chosen else None
        if (
            last is not None
            and (last.family, last.config) == (best.family, best.config)
            and last.M.high == part.low - 1
            and space_of(best.family).legal(best.config, N, K, MRange(last.M.low, part.high), arch)
        ):
            chosen[-1] = Choice(MRange(last.M.low, part.high), last.family, last.config, last.record)
        else:
            chosen.append(Choice(part, best.family, best.config, best))
    return tuple(chosen)


def _parts(ranges: Sequence[MRange]) -> Iterator[MRange]:
    """Cut ranges at each other's ends and yield the pieces that lie in at least one, in order."""
    starts = sorted({r.low for r in ranges} | {r.high + 1 for r in ranges if r.high is not None})
    for low, following in zip(starts, (*starts, None)[1:], strict=True):
        part = MRange(low, None if following is None else following - 1)
        if any(_holds(r, part) for r in ranges):
            yield part


def _holds(whole: MRange, part: MRange) -> bool:
    return whole.low <= part.low and (
        whole.high is None or (part.high is not None and part.high <= whole.high)
    )


def _best(N: int, K: int, M: MRange, arch: Arch, records: Sequence[Record]) -> Record | None:
    """Return the record whose configuration should be fastest for another shape."""
    rows = judged_at(M)

    def expected(record: Record) -> float:
        space = space_of(record.family)
        there = space.time(record.config, record.N, record.K, record.judged_at, arch)
        return record.time_us * space.time(record.config, N, K, rows, arch) / there

    usable = [r for r in records if space_of(r.family).legal(r.config, N, K, M, arch)]
    return min(usable, key=expected, default=None)
