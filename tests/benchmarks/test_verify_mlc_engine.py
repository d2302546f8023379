"""What --prepare leaves for --run, how answers are counted, and that a case that fails leaves the others."""

import contextlib
import json
import sys
import types

import benchmark_modules  # noqa: F401
import numpy as np
import pytest

from benchmarks import verify_mlc_engine
from benchmarks.verify_mlc_engine import CASES, STEPS, TEXTS, clear_texts


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """A folder of cases, made without MLC-LLM, checkpoints and transformers."""
    compiled = []

    def compile(out, *options, device, serial):
        compiled.append((out.name, device, serial))
        out.mkdir()
        (out / "lib.so").touch()

    model = verify_mlc_engine.mlc_llm_model
    monkeypatch.setattr(model, "missing", lambda: None)
    monkeypatch.setattr(model, "configure", lambda checkpoint, out, quantization, *options: None)
    monkeypatch.setattr(model, "convert", lambda *_: None)
    monkeypatch.setattr(model, "compile", compile)
    monkeypatch.setattr(model, "revision", lambda: "0123")
    monkeypatch.setattr(verify_mlc_engine.mlc_llm_engine, "missing", lambda: None)
    monkeypatch.setattr(verify_mlc_engine.verify_mlc, "make_checkpoint", lambda path, *_: (path, path))
    monkeypatch.setattr(verify_mlc_engine.ascii_tokenizer, "write_tokenizer", lambda _: None)
    monkeypatch.setattr(verify_mlc_engine.reference, "reference_model", lambda _: None)
    monkeypatch.setattr(
        verify_mlc_engine, "clear_texts", lambda *_: {f"text {i}": f"said {i}" for i in range(4)}
    )
    arguments = ["x", "--prepare", "--target", "cpu", "--folder", str(tmp_path / "work")]
    monkeypatch.setattr(sys, "argv", arguments)
    assert verify_mlc_engine.main() == 0
    assert compiled == [(c.name, "cpu:0", c.model == "mixtral") for c in CASES if c.shards == 1]
    return tmp_path / "work"


def test_answers_are_counted_and_a_case_that_fails_leaves_the_others(folder, monkeypatch, tmp_path):
    @contextlib.contextmanager
    def serve(out, *_, log, device):
        if "mixtral" in out.name:
            raise RuntimeError("does not answer")

        def post(path, prompt, max_tokens, temperature):
            assert (path, max_tokens, temperature, device) == ("completions", STEPS, 0, "cpu")
            wrong = "qwen3" in out.name and prompt == "text 2"
            return {"choices": [{"text": "other" if wrong else prompt.replace("text", "said")}]}

        yield types.SimpleNamespace(post=post)

    monkeypatch.setattr(verify_mlc_engine.mlc_llm_engine, "serve", serve)
    file = tmp_path / "out.json"
    monkeypatch.setattr(sys, "argv", ["x", "--run", str(folder), "--json", str(file)])
    assert verify_mlc_engine.main() == 1
    report = json.loads(file.read_text())
    counted = {row["model"]: (row.get("equal_alone"), row.get("equal_together")) for row in report["rows"]}
    assert report["mlc_llm"] == "0123"
    assert counted == {"llama": (4, 4), "qwen3": (3, 3), "gemma3_text": (4, 4), "mixtral": (None, None)}
    assert report["rows"][-1]["error"] == "RuntimeError: does not answer"


def test_texts_whose_answers_have_special_tokens_are_left_out(monkeypatch):
    answers = iter([[7] * STEPS, [2] + [8] * (STEPS - 1), [9] * STEPS])

    def clear_steps(_model, _length, _steps, draw):
        return draw(np.random.default_rng(0), 5), next(answers), None

    tokenizer = types.SimpleNamespace(
        get_vocab_size=lambda: 512,
        decode=lambda tokens: " ".join(map(str, tokens)),
        encode=lambda text: types.SimpleNamespace(ids=[int(word) for word in text.split()]),
    )
    monkeypatch.setattr(verify_mlc_engine.reference, "clear_steps", clear_steps)
    found = clear_texts(None, tokenizer, 2, first=(1,))
    assert list(found.values()) == [" ".join(["7"] * STEPS), " ".join(["9"] * STEPS)]
    assert all(text.startswith("1 ") for text in found) and TEXTS >= 2
