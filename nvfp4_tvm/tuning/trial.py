"""What is tried, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nvfp4_tvm.arch import Arch
from nvfp4_tvm.errors import NVFP4Error
from nvfp4_tvm.schedules.base import MatmulProblem, MRange
from nvfp4_tvm.schedules.records import MAX_NUMBER, epilogue_kind
from nvfp4_tvm.schedules.space import Config, decode, encode
from nvfp4_tvm.schedules.spaces import space_of


@dataclass(frozen=True)
class Candidate:
    """A configuration of a family."""

    family: str
    config: Config

    def __str__(self) -> str:
        return f"{self.family} {getattr(self.config, 'name', self.config)}"


@dataclass(frozen=True)
class Build:
    """One kernel to compile: a candidate for a weight and the rows that its machine code can take."""

    problem: MatmulProblem
    candidate: Candidate


@dataclass(frozen=True)
class Trial:
    """One figure to take.

    Attributes
    ----------
    problem : MatmulProblem
        Of every M.
    candidate : Candidate
        What runs.
    rows : int
        M.
    round : int
        0 while searching; later rounds compare the best ones again.
    """

    problem: MatmulProblem
    candidate: Candidate
    rows: int
    round: int = 0

    def build(self, arch: Arch) -> Build:
        """Return the kernel that the trial needs."""
        served = space_of(self.candidate.family).served(self.rows, arch)
        p = self.problem
        problem = MatmulProblem(
            p.N, p.K, served, p.x_dtype, p.out_dtype, p.bias, p.residual, p.activation, dynamic=True
        )
        return Build(problem, self.candidate)

    def to_json(self) -> dict[str, Any]:
        """Return the trial as JSON."""
        problem = self.problem
        return {
            "N": problem.N,
            "K": problem.K,
            "x_dtype": problem.x_dtype,
            "epilogue": epilogue_kind(problem),
            "family": self.candidate.family,
            "config": encode(self.candidate.config),
            "rows": self.rows,
            "round": self.round,
        }


@dataclass(frozen=True)
class Outcome:
    """What came of a trial: a time, or why there is none.

    Attributes
    ----------
    time_us : float or None
        Microseconds a call; None if the kernel did not build, was wrong, crashed or did not end.
    floor_us : float
        Time to move the bytes at the speed of a device copy.
    error : str or None
        Why there is no time.
    """

    time_us: float | None
    floor_us: float
    error: str | None = None

    @property
    def cost(self) -> float:
        """The time, infinite if there is none."""
        return float("inf") if self.time_us is None else self.time_us

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Outcome:
        """Read an outcome.

        Raises
        ------
        NVFP4Error
            If a field is missing or wrong.
        """
        time, floor, error = (raw.get(name) for name in ("time_us", "floor_us", "error"))
        right = isinstance(time, float | int | None) and isinstance(error, str | None)
        if not isinstance(floor, float | int) or not right or (time is None) == (error is None):
            raise NVFP4Error(f"found {raw!r:.200}, expected floor_us and either time_us or error")
        return cls(time, floor, error)


def problem_of(N: int, K: int, x_dtype: str, epilogue: str) -> MatmulProblem:
    """Return the problem for every M of an epilogue's name (`nvfp4_tvm.schedules.records.epilogue_kind`).

    Raises
    ------
    NVFP4Error
        If there is no such epilogue.
    """
    parts = set() if epilogue == "plain" else set(epilogue.split("+"))
    out_dtype = next(iter(parts & {"float32", "float16", "bfloat16"}), x_dtype)
    activation = "silu_mul" if "silu_mul" in parts else None
    problem = MatmulProblem(
        N, K, MRange(), x_dtype, out_dtype, "bias" in parts, "residual" in parts, activation
    )
    if epilogue_kind(problem) != epilogue:
        raise NVFP4Error(
            f"epilogue {epilogue!r}: expected such as plain, bias, residual, silu_mul or float32"
        )
    return problem


def trial_of(raw: Any) -> Trial:
    """Read a trial that `Trial.to_json` wrote.

    Raises
    ------
    NVFP4Error
        If a field is missing or wrong.
    """
    try:
        for name in ("N", "K", "rows", "round"):
            if type(raw[name]) is not int or not 0 <= raw[name] < MAX_NUMBER:
                raise NVFP4Error(f"{name} is {raw[name]!r:.80}, expected 0 to {MAX_NUMBER}")
        problem = problem_of(raw["N"], raw["K"], raw["x_dtype"], raw["epilogue"])
        candidate = Candidate(raw["family"], decode(space_of(raw["family"]), raw["config"]))
        return Trial(problem, candidate, raw["rows"], raw["round"])
    except (KeyError, TypeError, AttributeError) as error:
        raise NVFP4Error(f"found {raw!r:.200}, expected a trial: {error!r:.80}") from None
