import pytest

from nvfp4_tvm.errors import NVFP4Error
from nvfp4_tvm.schedules.base import MRange
from nvfp4_tvm.tuning.shapes import parse_ranges, parse_shapes


def test_shapes():
    assert parse_shapes("64x128, 24x48,64x128") == [(64, 128), (24, 48)]
    for wrong in ("", "64", "x64", "64x", "64x8", "64x128,", "-64x128"):
        with pytest.raises(NVFP4Error):
            parse_shapes(wrong)


def test_ranges():
    assert parse_ranges("1-8,9, 20-") == (MRange(1, 8), MRange(9, 9), MRange(20))
    for wrong in ("", "a", "-8", "8-1", "0-4", "1-8,8-9", "1-,9-16", "1-2-3"):
        with pytest.raises(NVFP4Error):
            parse_ranges(wrong)
