import json
import sys
from types import SimpleNamespace

import benchmark_modules  # noqa: F401
import pytest

from benchmarks import e2e


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """A folder whose model takes a millisecond a token."""
    manifest = SimpleNamespace(context_length=64, vocab_size=32, target="llvm", dtype="float32")
    manifest.quantized_layers, manifest.tuning = 4, ("records predicted for Some card",)

    def generate(prompt, tokens):
        assert all(0 <= token < 32 for token in prompt)
        return SimpleNamespace(seconds_prefill=len(prompt) / 1000, tokens_per_second=500.0)

    monkeypatch.setattr(e2e.Manifest, "read", lambda folder: manifest)
    monkeypatch.setattr(e2e.nvfp4_tvm, "load", lambda folder: SimpleNamespace(generate=generate))
    return tmp_path / "model"


def test_the_command(monkeypatch, folder, capsys):
    output = folder.with_name("e2e.json")
    options = ["--prompts", "8,40,63", "--tokens", "16", "-o", str(output)]
    monkeypatch.setattr(sys, "argv", ["e2e", str(folder), *options])
    assert e2e.main() == 0
    assert "| model, 40 | 40.0 | 1000.0 | 500.0 |" in capsys.readouterr().out
    rows = json.loads(output.read_text())["rows"]
    assert [row["prompt"] for row in rows] == [8, 40]  # 63 and 16 do not fit the context
    assert rows[0]["tuning"] == ["records predicted for Some card"] and output.with_suffix(".png").exists()


def test_nothing_fits(monkeypatch, folder, capsys):
    monkeypatch.setattr(sys, "argv", ["e2e", str(folder), "--prompts", "64"])
    assert e2e.main() == 2 and "fits a context" in capsys.readouterr().err
