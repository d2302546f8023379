"""Search spaces: which configurations of a kernel family may be tried, and what must hold of one that is used.

A space is data: named decisions with the values each may take. All families are searched by one driver
(:mod:`nvfp4_tvm.tuning`), stored in one format (:mod:`.records`), and a configuration from a file is used
only if its space has it and the architecture can run it. What a family's candidates cost is up to its model; those
that a model puts far behind are left out, so that almost every candidate builds and none is hopeless.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from nvfp4_tvm.arch import Arch, get_arch
from nvfp4_tvm.errors import NVFP4Error, ShapeError
from nvfp4_tvm.schedules.base import KernelRule, MRange
from nvfp4_tvm.schedules.model import Footprint

#: A frozen dataclass of ints and bools that checks itself.
Config = Any

#: Candidates whose predicted time is that many times the best one's are not tried.
HOPELESS = 1.6
#: Times closer than this factor are equal to a model; what is nearer to the family's own choice then goes first.
_EQUAL = 1.03
#: Rows that stand for a range without an end.
LARGE_M = 4096


def judged_at(M: MRange) -> int:
    """Return the rows that a configuration for a range is judged by: the most, which fill its tiles best."""
    return max(M.low, LARGE_M) if M.high is None else M.high


class Space(ABC):
    """The search space of one family.

    Attributes
    ----------
    name : str
        Of the family, that of its rule.
    config_type : type
        Of its configurations.
    decisions : mapping of str to tuple of int
        What each field of a configuration may be.
    """

    name: ClassVar[str]
    config_type: ClassVar[type]
    decisions: ClassVar[Mapping[str, tuple[int, ...]]]

    @abstractmethod
    def rule(self, config: Config) -> KernelRule:
        """Return the family with this configuration for every M."""

    @abstractmethod
    def rows(self, arch: Arch) -> MRange | None:
        """Return the rows of activations it can be asked for on an architecture, or None."""

    @abstractmethod
    def default(self, N: int, K: int, M: MRange, arch: Arch) -> Config | None:
        """Return what the family takes without a record, or None where it takes nothing."""

    @abstractmethod
    def footprint(self, config: Config, M: int) -> Footprint:
        """Return what a block takes of an SM."""

    @abstractmethod
    def suits(self, config: Config, N: int, K: int, M: MRange) -> bool:
        """Whether the kernel can run these problems."""

    @abstractmethod
    def time(self, config: Config, N: int, K: int, M: int, arch: Arch) -> float:
        """Return the predicted time on the architecture's usual card, microseconds."""

    def served(self, rows: int, arch: Arch) -> MRange:
        """Return the rows that the kernel built for some rows takes: all of the family's, unless it says less."""
        whole = self.rows(arch)
        assert whole is not None and rows in whole, (self.name, rows)
        return whole

    def configs(self, arch: Arch) -> Iterator[Config]:
        """Yield every configuration of the decisions that checks out."""
        names = list(self.decisions)

        def extend(chosen: dict[str, int]) -> Iterator[Config]:
            if len(chosen) < len(names):
                name = names[len(chosen)]
                for value in self.values(name, chosen):
                    yield from extend({**chosen, name: value})
                return
            config = self.make(chosen)
            if config is not None:
                yield config

        yield from extend({})

    def values(self, name: str, chosen: Mapping[str, int]) -> tuple[int, ...]:
        """Return what a decision may be after the ones before it."""
        return self.decisions[name]

    def make(self, chosen: Mapping[str, int]) -> Config | None:
        """Return the configuration of some decisions, or None if it does not check out."""
        try:
            return self.config_type(**chosen)
        except (ShapeError, AssertionError):
            return None

    def legal(self, config: Config, N: int, K: int, M: MRange, arch: Arch) -> bool:
        """Whether a configuration may be used for these problems on an architecture."""
        rows = self.rows(arch)
        if rows is None or M.low < rows.low or (rows.high is not None and (M.high or LARGE_M) > rows.high):
            return False
        if any(getattr(config, name) not in values for name, values in self.decisions.items()):
            return False
        return self.resident(config, judged_at(M), arch) > 0 and self.suits(config, N, K, M)

    def resident(self, config: Config, M: int, arch: Arch) -> int:
        """Return how many blocks of the kernel for M rows an SM holds at the same time."""
        return _resident(self, config, self.served(M, arch).low, arch.name)

    def candidates(self, N: int, K: int, M: MRange, arch: Arch) -> list[Config]:
        """Return what is worth trying, by predicted time; the family's own choice is first if it is legal."""
        rows, default = judged_at(M), self.default(N, K, M, arch)
        own = [] if default is None or not self.legal(default, N, K, M, arch) else [default]
        found = [
            config
            for config in _checked(self, arch)
            if config not in own and self.legal(config, N, K, M, arch)
        ]
        times = {config: self.time(config, N, K, rows, arch) for config in (*own, *found)}
        limit = HOPELESS * min(times.values(), default=0.0)

        def order(config: Config) -> tuple[int, int]:
            far = 0 if default is None else distance(config, default)
            return round(math.log(times[config], _EQUAL)), far  # the order of the decisions among equals

        return own + sorted((config for config in found if times[config] <= limit), key=order)


@functools.cache
def _resident(space: Space, config: Config, M: int, arch: str) -> int:
    block = space.footprint(config, M)
    return get_arch(arch).blocks_per_sm(block.threads, block.registers, block.shared)


@functools.cache
def _checked(space: Space, arch: Arch) -> tuple[Config, ...]:
    return tuple(space.configs(arch))


def distance(a: Config, b: Config) -> int:
    """Return how many decisions differ."""
    return sum(value != other for value, other in zip(vars(a).values(), vars(b).values(), strict=True))


def encode(config: Config) -> dict[str, int]:
    """Return the fields of a configuration, for JSON."""
    return dataclasses.asdict(config)


def decode(space: Space, fields: object) -> Config:
    """Return the configuration that `encode` made fields of.

    Raises
    ------
    NVFP4Error
        If names or types differ, or the configuration does not check out.
    """
    expected = {field.name: type(field.default) for field in dataclasses.fields(space.config_type)}
    if not isinstance(fields, dict) or set(fields) != set(expected):
        raise NVFP4Error(f"{space.name} configuration: found {fields!r:.200}, expected {', '.join(expected)}")
    for name, value in fields.items():
        wanted = bool if expected[name] is bool else int
        if type(value) is not wanted:
            raise NVFP4Error(
                f"{space.name} configuration: {name} is {value!r:.80}, expected {wanted.__name__}"
            )
    try:
        return space.config_type(**fields)
    except (ShapeError, AssertionError, ArithmeticError) as error:  # as for zero warps
        raise NVFP4Error(f"{space.name} configuration: {fields!r:.400} is refused: {error}") from None
