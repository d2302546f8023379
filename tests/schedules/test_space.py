from dataclasses import dataclass

import pytest

from nvfp4_tvm.arch import ARCHS
from nvfp4_tvm.errors import NVFP4Error, ShapeError
from nvfp4_tvm.schedules.base import MRange
from nvfp4_tvm.schedules.model import Footprint
from nvfp4_tvm.schedules.space import HOPELESS, LARGE_M, Space, decode, distance, encode, judged_at

SM_80 = ARCHS["sm_80"]


@dataclass(frozen=True)
class Tile:
    rows: int = 8
    stages: int = 1
    wide: bool = False

    def __post_init__(self):
        if self.rows == 32 and self.stages == 2:
            raise ShapeError("too large")


class TileSpace(Space):
    """Tiles that take 1 us for each row; the largest does not fit an SM."""

    name = "tile"
    config_type = Tile
    decisions = {"rows": (8, 10, 32, 64), "stages": (1, 2), "wide": (False,)}  # noqa: RUF012

    def __init__(self, default=None):
        self._default = default

    def rule(self, config):
        raise AssertionError("not needed")

    def rows(self, arch):
        return MRange(2, 100) if arch is SM_80 else None

    def default(self, N, K, M, arch):
        return self._default

    def footprint(self, config, M):
        return Footprint(128, 32, 0 if config.rows < 64 else SM_80.shared_per_block + 1)

    def suits(self, config, N, K, M):
        return N >= config.rows

    def values(self, name, chosen):
        return (1,) if name == "stages" and chosen["rows"] == 64 else super().values(name, chosen)

    def time(self, config, N, K, M, arch):
        return float(config.rows)


def test_what_ranges_are_judged_at():
    assert judged_at(MRange(9, 16)) == 16 and judged_at(MRange(17)) == LARGE_M
    assert judged_at(MRange(LARGE_M + 1)) == LARGE_M + 1


def test_configurations_are_what_decisions_allow_and_checks_out():
    found = list(TileSpace().configs(SM_80))
    assert found == [Tile(8), Tile(8, 2), Tile(10), Tile(10, 2), Tile(32), Tile(64)]


@pytest.mark.parametrize(
    ("config", "N", "M", "arch", "expected"),
    [
        (Tile(), 64, MRange(2, 100), "sm_80", True),
        (Tile(), 64, MRange(1, 100), "sm_80", False),  # rows below
        (Tile(), 64, MRange(2, 101), "sm_80", False),  # above
        (Tile(), 64, MRange(2), "sm_80", False),  # without an end
        (Tile(), 64, MRange(2, 100), "sm_90", False),  # not there
        (Tile(wide=True), 64, MRange(2, 100), "sm_80", False),  # not a decision
        (Tile(10), 9, MRange(2, 100), "sm_80", False),  # does not suit
        (Tile(64), 64, MRange(2, 100), "sm_80", False),  # more shared memory than an SM has
    ],
)
def test_what_is_legal(config, N, M, arch, expected):
    assert TileSpace().legal(config, N, 64, M, ARCHS[arch]) is expected


def test_candidates_are_in_order_and_none_is_hopeless():
    M = MRange(2, 16)
    assert 8 * HOPELESS < 32
    assert TileSpace().candidates(64, 64, M, SM_80) == [Tile(8), Tile(8, 2), Tile(10), Tile(10, 2)]
    # A choice goes first, however long it takes; among equals, what is near to it
    assert TileSpace(Tile(32)).candidates(64, 64, M, SM_80)[0] == Tile(32)
    assert TileSpace(Tile(10, 2)).candidates(64, 64, M, SM_80) == [Tile(10, 2), Tile(8, 2), Tile(8), Tile(10)]
    assert TileSpace(Tile(64)).candidates(64, 64, M, SM_80)[0] == Tile(8)  # one that is not legal does not
    assert TileSpace().candidates(4, 64, M, SM_80) == []


def test_what_serves_a_number_of_rows():
    assert TileSpace().served(17, SM_80) == MRange(2, 100)
    with pytest.raises(AssertionError):
        TileSpace().served(1, SM_80)


def test_distance_is_the_number_of_decisions_that_differ():
    assert distance(Tile(), Tile()) == 0 and distance(Tile(), Tile(10, 2)) == 2


def test_fields_of_a_configuration():
    config = Tile(10, 2, True)
    assert (
        encode(config) == {"rows": 10, "stages": 2, "wide": True}
        and decode(TileSpace(), encode(config)) == config
    )
    for damaged in (
        {"rows": 10},
        [10, 2, True],
        {**encode(config), "wide": 1},
        {**encode(config), "rows": 10.0},
    ):
        with pytest.raises(NVFP4Error, match="tile configuration"):
            decode(TileSpace(), damaged)
    with pytest.raises(NVFP4Error, match="too large"):
        decode(TileSpace(), {"rows": 32, "stages": 2, "wide": False})
