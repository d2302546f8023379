import json
import sys

import benchmark_modules  # noqa: F401
import pytest

from benchmarks import convert


def test_the_command(monkeypatch, tmp_path, capsys):
    output = tmp_path / "convert.json"
    monkeypatch.setattr(sys, "argv", ["convert", "--shapes", "100x48", "--repeats", "2", "-o", str(output)])
    assert convert.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("|  | numpy | torch, cpu |") and lines[4].startswith("| 100x48 | ")
    for row in json.loads(output.read_text())["rows"]:
        assert row["mb_per_s"] == pytest.approx(100 * 48 * 9 / 16 / row["pack_ms"] / 1e3, rel=0.02, abs=0.1)
    assert output.with_suffix(".png").exists()


def test_other_bits_are_refused(monkeypatch):
    pack = convert.pack
    monkeypatch.setattr(convert, "pack", lambda codes, *more: pack(codes ^ 1, *more))
    with pytest.raises(ValueError, match="packs other bits"):
        convert.measure(16, 32, 1)
