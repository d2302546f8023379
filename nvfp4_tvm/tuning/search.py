"""The search for one weight: which configurations to try, and which range of M each winner gets.

A search is a generator: it yields batches of trials, is sent their outcomes, and returns its findings. What it
yields depends on its settings and the outcomes alone, never on time or on the order in which trials ran; fed
with a journal of outcomes it therefore goes the same way again, which is how a run that was killed continues.

1. For each range of M, the kernel that is used without a record, what a given database says of the nearest shapes,
   the families' best by their models, then generations of those with one decision changed, and random ones.
2. The best few of each range once more, beside the best of ranges around it: first figures are noisy, and the
   luckiest of many is not the best.
3. From the smallest M up, a range takes a kernel of the ranges before it unless another is faster by
   `WORTH_A_KERNEL`, and what runs without a record unless another is faster by the resolution of the times.
4. Between two ranges, bisection for the M from which the upper one's kernel is faster: ranges of M are found, the
   bounds given are where they are looked for.
5. A range is judged by its last rows, and without a record its first ones may get another kernel, of narrower
   tiles: a winner takes the part of its range in which it is not slower than what runs there without a record.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, zip_longest
from math import inf

from nvfp4_tvm.arch import Arch
from nvfp4_tvm.schedules.base import MatmulProblem, MRange
from nvfp4_tvm.schedules.gemm_mma_choice import BOUNDS as MMA_BOUNDS
from nvfp4_tvm.schedules.gemm_mma_choice import WORTH_A_KERNEL
from nvfp4_tvm.schedules.records import Database, epilogue_kind
from nvfp4_tvm.schedules.space import distance, judged_at
from nvfp4_tvm.schedules.spaces import SPACES, space_of
from nvfp4_tvm.schedules.tuned import neighbours
from nvfp4_tvm.tuning.trial import Candidate, Outcome, Trial

#: Last rows of the ranges that are searched; the last range has no end. Beyond 16 those of the mma.sync GEMM's own
#: model: a record holds for all of its range, so that wider ones would lose what the model tells apart.
BOUNDS = (1, 4, 8, 16, *MMA_BOUNDS)
#: So many of a range are compared again, with the best of so many ranges before it and of the next one.
FINALISTS, _BEFORE = 3, 4
#: Candidates of a family that a range chooses from, by its model.
_POOL = 512
#: A candidate predicted to take that many times as long as the best of all families is not tried. The models were
#: off by 0.95 to 1.2 for most of 244 candidates for 7168x5120 on an H200 that did not spill registers.
_RIVAL = 1.35
#: Share of the trials that the models choose; the rest are spread over so many generations.
_BY_MODEL, _GENERATIONS = 0.5, 4
#: Parents of a generation, and its share of random candidates.
_PARENTS, _RANDOM = 3, 0.2
#: Crossovers are found to an eighth of the distance between bounds, and to 8 rows, a tile of tokens.
_PARTS, _TOKENS = 8, 8

Outcomes = dict[Trial, Outcome]
Search = Generator[list[Trial], Outcomes, "list[Finding]"]


@dataclass(frozen=True)
class Settings:
    """What a search depends on beside outcomes.

    Attributes
    ----------
    trials : int
        Configurations for each range of M.
    ranges : tuple of MRange
        Where to search, in order and without overlap.
    fixed : bool
        Whether the ranges are final, so that none is joined with another or moved.
    seed : int
        Of everything random.
    families : tuple of str
        Those to search.
    resolution : float
        What runs without a record stays unless another is faster by this factor: times are not more exact.
    near : Database
        Records of other shapes, or of the same one, whose configurations are tried first.
    """

    trials: int = 64
    ranges: tuple[MRange, ...] = ()
    fixed: bool = False
    seed: int = 0
    families: tuple[str, ...] = tuple(SPACES)
    resolution: float = 1.01
    near: Database = field(default_factory=Database)


@dataclass(frozen=True)
class Finding:
    """What a range of M gets.

    Attributes
    ----------
    M : MRange
        The range.
    candidate : Candidate
        The winner.
    rows : int
        M that it was judged at.
    outcome : Outcome
        Its time there.
    default : Candidate or None
        What runs without a record.
    default_outcome : Outcome or None
        Its time at the same M.
    trials : int
        Configurations that were compared.
    own : bool
        Whether it is the default that won: no record is needed, and one would hold for rows that it is not the
        default of.
    """

    M: MRange
    candidate: Candidate
    rows: int
    outcome: Outcome
    default: Candidate | None
    default_outcome: Outcome | None
    trials: int
    own: bool = False


def ranges_of(bounds: Sequence[int] = BOUNDS) -> tuple[MRange, ...]:
    """Return ranges that end at some bounds, and one without an end."""
    lows = (1, *(bound + 1 for bound in bounds))
    return tuple(MRange(low, high) for low, high in zip(lows, (*bounds, None), strict=True))


@dataclass
class _Part:
    """One range of M with what was tried for it."""

    M: MRange
    untried: list[Candidate]
    default: Candidate | None
    tried: dict[Candidate, Outcome]

    @property
    def rows(self) -> int:
        return judged_at(self.M)

    def best(self, count: int) -> list[Candidate]:
        good = [candidate for candidate, outcome in self.tried.items() if outcome.error is None]
        return sorted(good, key=lambda candidate: (self.tried[candidate].cost, str(candidate)))[:count]


def search(problem: MatmulProblem, arch: Arch, settings: Settings) -> Search:
    """Search for one weight.

    Parameters
    ----------
    problem : MatmulProblem
        Of every M.
    arch : Arch
        Whose kernels are tried.
    settings : Settings
        See there.
    """
    parts = [_part(problem, M, arch, settings) for M in settings.ranges or ranges_of()]
    model = max(1, round(settings.trials * _BY_MODEL))
    later = settings.trials - model
    sizes = [
        model,
        *(later * (i + 1) // _GENERATIONS - later * i // _GENERATIONS for i in range(_GENERATIONS)),
    ]
    for generation, size in enumerate(sizes):
        wanted = {id(part): _propose(part, problem, arch, settings, generation, size) for part in parts}
        outcomes = yield [Trial(problem, c, part.rows) for part in parts for c in wanted[id(part)]]
        for part in parts:
            part.tried |= {c: outcomes[Trial(problem, c, part.rows)] for c in wanted[id(part)]}
    parts = [part for part in parts if part.best(1)]

    finalists = []
    for i, part in enumerate(parts):
        around = [
            c for other in parts[max(0, i - _BEFORE) : i + 2] if other is not part for c in other.best(1)
        ]
        own = part.best(FINALISTS) + ([part.default] if part.default in part.tried else [])
        legal = [c for c in around if space_of(c.family).legal(c.config, problem.N, problem.K, part.M, arch)]
        finalists.append(list(dict.fromkeys(own + legal)))
    outcomes = yield [
        Trial(problem, c, part.rows, 1) for part, some in zip(parts, finalists, strict=True) for c in some
    ]
    winners: list[tuple[_Part, Candidate]] = []
    for part, some in zip(parts, finalists, strict=True):
        costs = {c: outcomes[Trial(problem, c, part.rows, 1)].cost for c in some}
        if min(costs.values()) < inf:
            winners.append((part, _winner(costs, part.default, [c for _, c in winners], settings)))

    ends = yield from _crossovers(problem, arch, winners, settings)
    lows = yield from _starts(problem, arch, winners, ends, settings)
    # A few rows before the last are not worth a kernel
    kept = [
        low <= part.M.low or low + _TOKENS <= part.rows for (part, _), low in zip(winners, lows, strict=True)
    ]
    ranges = [MRange(low, end) for low, end, keep in zip(lows, ends, kept, strict=True) if keep]
    return _findings(
        problem, [w for w, keep in zip(winners, kept, strict=True) if keep], ranges, outcomes, settings
    )


def _winner(
    costs: dict[Candidate, float], default: Candidate | None, before: Sequence[Candidate], settings: Settings
) -> Candidate:
    """Return what a range gets: a kernel that is there already, the default, or the best, by what it is worth."""
    best = min(costs, key=lambda c: (costs[c], str(c)))
    known = min((c for c in before if c in costs), key=lambda c: (costs[c], str(c)), default=None)
    if known is not None and costs[known] <= WORTH_A_KERNEL * costs[best] and not settings.fixed:
        return known
    if default is not None and costs.get(default, inf) <= settings.resolution * costs[best]:
        return default
    return best


def _part(problem: MatmulProblem, M: MRange, arch: Arch, settings: Settings) -> _Part:
    """Order what may be tried: the dispatch's own choice, those of near shapes, then families take turns."""
    families, default = settings.families, dispatched(problem, M, arch)
    rows, columns = judged_at(M), []

    def predicted(candidate: Candidate) -> float:
        space = space_of(candidate.family)
        return space.time(candidate.config, problem.N, problem.K, rows, arch)

    for family in SPACES:
        found = space_of(family).candidates(problem.N, problem.K, M, arch)[:_POOL]
        if family in families:
            columns.append([Candidate(family, config) for config in found])
    limit = _RIVAL * min((predicted(c) for column in columns for c in column), default=0.0)
    columns = [[c for c in column if predicted(c) <= limit] for column in columns]
    turns = _near(problem, M, arch, settings)
    turns += [c for row in zip_longest(*columns) for c in row if c is not None]
    turns = [c for c in dict.fromkeys(turns) if c != default]
    untried = ([] if default is None or default.family not in families else [default]) + turns
    return _Part(M, untried, default, {})


def dispatched(problem: MatmulProblem, M: MRange, arch: Arch) -> Candidate | None:
    """Return what runs for some rows without a record: the first family that has a choice of its own."""
    for family in SPACES:
        own = space_of(family).default(problem.N, problem.K, M, arch)
        if own is not None and space_of(family).legal(own, problem.N, problem.K, M, arch):
            return Candidate(family, own)
    return None


def _near(problem: MatmulProblem, M: MRange, arch: Arch, settings: Settings) -> list[Candidate]:
    """Return what the nearest shapes of ``settings.near`` take for the rows that a range is judged by."""
    N, K, rows = problem.N, problem.K, judged_at(M)
    found = neighbours(N, K, problem.x_dtype, epilogue_kind(problem), arch.name, settings.near)
    candidates = [Candidate(r.family, r.config) for records in found for r in records if rows in r.M]
    return [
        c
        for c in candidates
        if c.family in settings.families and space_of(c.family).legal(c.config, N, K, M, arch)
    ]


def _propose(
    part: _Part, problem: MatmulProblem, arch: Arch, settings: Settings, generation: int, size: int
) -> list[Candidate]:
    """Return the next candidates of a range, not tried yet: the models' first, later changed or random ones."""
    size = min(size, len(part.untried))
    if generation == 0:
        picked = part.untried[:size]
    else:
        random_ = random.Random(
            f"{settings.seed} {problem.N} {problem.K} {part.M} {problem.x_dtype} {generation}"
        )
        parents = part.best(_PARENTS)
        relatives = [c for c in part.untried if any(_related(c, parent) for parent in parents)]
        count = max(0, min(len(relatives), round(size * (1 - _RANDOM))))
        picked = random_.sample(relatives, count)
        others = [c for c in part.untried if c not in set(picked)]
        picked += random_.sample(others, size - count)
    chosen = set(picked)
    part.untried = [c for c in part.untried if c not in chosen]
    return picked


def _related(a: Candidate, b: Candidate) -> bool:
    """Whether one decision differs, or two where they only make sense together."""
    return a.family == b.family and distance(a.config, b.config) <= 2


def _crossovers(
    problem: MatmulProblem, arch: Arch, winners: Sequence[tuple[_Part, Candidate]], settings: Settings
) -> Generator[list[Trial], Outcomes, list[int | None]]:
    """Return the last M of each winner: its range's own, or the one that bisection found above it."""
    ends: list[int | None] = [part.M.high for part, _ in winners]
    # The last M at which the lower range's winner is known to be the better one, the first at which it is not
    brackets = {
        i: [part.rows, upper.rows]
        for i, ((part, candidate), (upper, other)) in enumerate(pairwise(winners))
        if candidate != other and part.M.high == upper.M.low - 1 and not settings.fixed
    }
    while True:
        batch: dict[int, tuple[Trial, Trial]] = {}
        for i, (low, high) in brackets.items():
            (part, candidate), (upper, other) = winners[i : i + 2]
            middle = low + (high - low) // 2 // _TOKENS * _TOKENS
            if high - low <= (upper.rows - part.rows) / _PARTS or not low < middle < high:
                continue
            reaches = MRange(part.M.low, middle)
            if space_of(candidate.family).legal(candidate.config, problem.N, problem.K, reaches, arch):
                batch[i] = (Trial(problem, candidate, middle, 2), Trial(problem, other, middle, 2))
        if not batch:
            break
        outcomes = yield [trial for pair in batch.values() for trial in pair]
        for i, (lower, above) in batch.items():
            brackets[i][outcomes[lower].cost > outcomes[above].cost] = lower.rows
    for i, (low, _) in brackets.items():
        ends[i] = low
    return ends


def _starts(
    problem: MatmulProblem,
    arch: Arch,
    winners: Sequence[tuple[_Part, Candidate]],
    ends: Sequence[int | None],
    settings: Settings,
) -> Generator[list[Trial], Outcomes, list[int]]:
    """Return the first M of each winner: below it, what runs without a record is faster somewhere.

    Where that one is faster it stays, as far as its tiles are then fuller: its time would be the same.
    """
    lows = [part.M.low for part, _ in winners]
    for i, ((part, _), (upper, _)) in enumerate(pairwise(winners)):
        end = ends[i]
        if part.M.high == upper.M.low - 1 and end is not None:
            lows[i + 1] = end + 1
    rivals: dict[int, list[tuple[Trial, Trial]]] = {}
    for i, (part, candidate) in enumerate(winners):
        middle = lows[i] + (part.rows - lows[i]) // 2 // _TOKENS * _TOKENS
        for rows in sorted({lows[i], middle} - {part.rows}):
            own = dispatched(problem, MRange(rows, rows), arch)
            if own is None or own == candidate or own.family not in settings.families:
                continue
            if not settings.fixed:
                pair = Trial(problem, candidate, rows, 3), Trial(problem, own, rows, 3)
                rivals.setdefault(i, []).append(pair)
    if not rivals:
        return lows
    outcomes = yield [trial for pairs in rivals.values() for pair in pairs for trial in pair]
    for i, pairs in rivals.items():
        lost = [own for mine, own in pairs if outcomes[mine].cost > outcomes[own].cost]
        if lost:
            lows[i] = _last(problem, arch, lost[-1], winners[i][0].rows) + 1
    return lows


def _last(problem: MatmulProblem, arch: Arch, own: Trial, rows: int) -> int:
    """Return the last M below some rows that has the kernel of a trial without a record: more of its tile."""
    last = own.rows
    for M in range((own.rows // _TOKENS + 1) * _TOKENS, rows, _TOKENS):
        if dispatched(problem, MRange(M, M), arch) != own.candidate:
            break
        last = M
    return last


def _findings(
    problem: MatmulProblem,
    winners: Sequence[tuple[_Part, Candidate]],
    ranges: Sequence[MRange],
    outcomes: Outcomes,
    settings: Settings,
) -> list[Finding]:
    """Join neighbours with one winner."""
    findings: list[Finding] = []
    for (part, candidate), M in zip(winners, ranges, strict=True):
        low, trials = M.low, len(part.tried)
        own = candidate == part.default and not settings.fixed
        last = None if settings.fixed or not findings else findings[-1]
        if last is not None and (last.candidate, last.own, last.M.high) == (candidate, own, low - 1):
            low, trials = last.M.low, last.trials + trials
            findings.pop()

        def outcome(c: Candidate | None, rows: int = part.rows) -> Outcome | None:
            return None if c is None else outcomes.get(Trial(problem, c, rows, 1))

        measured = outcome(candidate)
        assert measured is not None
        best = part.default, outcome(part.default)
        findings.append(Finding(MRange(low, M.high), candidate, part.rows, measured, *best, trials, own))
    return findings
