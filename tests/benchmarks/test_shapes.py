import argparse

import benchmark_modules  # noqa: F401
import pytest

from benchmarks.shapes import ROWS, SHAPES, parse_rows, parse_shapes


def test_parsing():
    assert parse_shapes("8x16,square-4096") == [(8, 16), (4096, 4096)]
    assert parse_shapes("all") == list(SHAPES.values()) and parse_shapes("") == []
    assert parse_rows("1,77") == [1, 77] and parse_rows("all") == list(ROWS)
    for wrong in ("8", "8x", "x16", "square"):
        with pytest.raises(argparse.ArgumentTypeError, match="found the shape"):
            parse_shapes(wrong)
