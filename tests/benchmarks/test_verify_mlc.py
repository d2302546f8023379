"""Which checkpoints share a library, and which rows a file keeps."""

import json

import benchmark_modules  # noqa: F401
import pytest

from benchmarks import verify_mlc


@pytest.fixture
def mlc(monkeypatch, tmp_path):
    """MLC-LLM's commands without MLC-LLM: a configuration is what `records` says, a library its number."""
    records, compiled = {}, []

    def configure(checkpoint, out, quantization):
        out.mkdir()
        config = {"hidden_size": 128, **({"nvfp4": records[checkpoint]} if checkpoint in records else {})}
        (out / "mlc-chat-config.json").write_text(json.dumps({"model_config": config}))

    def compile(out, serial):
        compiled.append(out.name)
        return out / "lib.so"

    monkeypatch.setattr(verify_mlc.mlc_llm_model, "configure", configure)
    monkeypatch.setattr(verify_mlc.mlc_llm_model, "convert", lambda *_: None)
    monkeypatch.setattr(verify_mlc.mlc_llm_model, "compile", compile)
    return records, compiled


def test_libraries_are_shared_by_checkpoints_that_ask_for_the_same_model(mlc, tmp_path):
    records, compiled = mlc
    records["a"] = {"format": "modelopt", "unquantized": ["lm_head"]}
    records["b"] = {"format": "compressed-tensors", "unquantized": ["lm_head"]}
    records["c"] = {"format": "modelopt", "unquantized": []}
    libraries = {}
    for index, (checkpoint, quantization) in enumerate(
        [("a", "x"), ("b", "x"), ("plain", "x"), ("c", "x"), ("a", "y")]
    ):
        verify_mlc.build(checkpoint, tmp_path / str(index), quantization, libraries)
    assert compiled == ["0", "3", "4"]


def test_a_run_replaces_its_own_rows_and_keeps_the_others(monkeypatch, tmp_path):
    def verify(_folder, model, quantizations):
        for quantization in quantizations:
            yield {"model": model, "format": "bf16", "quantization": quantization, "run": next(runs)}

    runs = iter(range(10))
    monkeypatch.setattr(verify_mlc, "verify", verify)
    monkeypatch.setattr(verify_mlc.mlc_llm_model, "missing", lambda: None)
    monkeypatch.setattr(verify_mlc.mlc_llm_model, "revision", lambda: "0123")
    file = tmp_path / "out.json"
    for models in ("llama,phi3", "phi3"):
        arguments = ["verify_mlc", "--models", models, "--quantizations", "x", "--json", str(file)]
        monkeypatch.setattr("sys.argv", arguments)
        verify_mlc.main()
    report = json.loads(file.read_text())
    assert [(row["model"], row["run"]) for row in report["rows"]] == [("llama", 0), ("phi3", 2)]
    assert report["mlc_llm"] == "0123"


def test_the_base_of_rope_is_spelt_as_mlc_llm_reads_it(tmp_path):
    for parameters, expected in (({"rope_theta": 5.0}, 5.0), ({"full_attention": {"rope_theta": 5.0}}, None)):
        (tmp_path / "config.json").write_text(json.dumps({"rope_parameters": parameters}))
        verify_mlc.old_spelling(tmp_path / "config.json")
        assert json.loads((tmp_path / "config.json").read_text()).get("rope_theta") == expected
