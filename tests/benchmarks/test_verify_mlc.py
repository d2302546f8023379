"""Which checkpoints share a library, which rows a file keeps, and what --prepare leaves for --run."""

import json
import lzma
import shutil
import types

import benchmark_modules  # noqa: F401
import numpy as np
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

    def compile(out, *options, device, serial):
        compiled.append(out.name)
        (out / "lib.so").write_text(f"{device} {' '.join(options)} {serial}")
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
            names = {"target": "cpu", "model": model, "format": "bf16", "quantization": quantization}
            yield names | {"run": next(runs)}

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


def test_a_file_from_before_targets_had_a_column_is_of_the_cpu(monkeypatch, tmp_path):
    row = {"target": "cpu", "model": "llama", "format": "bf16", "quantization": "x"}
    monkeypatch.setattr(verify_mlc, "verify", lambda *_: iter([row]))
    monkeypatch.setattr(verify_mlc.mlc_llm_model, "missing", lambda: None)
    monkeypatch.setattr(verify_mlc.mlc_llm_model, "revision", lambda: "0123")
    file = tmp_path / "out.json"
    file.write_text(json.dumps({"rows": [{name: row[name] for name in row if name != "target"}]}))
    monkeypatch.setattr("sys.argv", ["verify_mlc", "--models", "llama", "--json", str(file)])
    verify_mlc.main()
    assert json.loads(file.read_text())["rows"] == [row]


@pytest.fixture
def model(monkeypatch):
    """Checkpoints and transformers without either: every model computes the same logits."""
    steps = [3, 4], [5] * 9, np.eye(9, 16, 5, dtype=np.float32) + np.eye(1, 16, 5, dtype=np.float32) * 9
    monkeypatch.setattr(verify_mlc, "make_checkpoint", lambda folder, model, form: (f"{model}-{form}",) * 2)
    monkeypatch.setattr(verify_mlc.mlc_llm_model, "revision", lambda: "0123")
    monkeypatch.setattr(verify_mlc.reference, "reference_model", lambda meaning: meaning)
    monkeypatch.setattr(verify_mlc.reference, "clear_steps", lambda *_: steps)
    monkeypatch.setattr(verify_mlc.reference, "forced_steps", lambda *_: steps[2])
    return steps


def test_what_is_prepared_is_run_elsewhere(mlc, model, monkeypatch, tmp_path):
    """In a copy of the folder, from a compressed library, and on the device that the target means."""
    folder, copy = tmp_path / "folder", tmp_path / "copy"
    folder.mkdir()
    monkeypatch.setattr(verify_mlc.mlc_llm_model, "missing", lambda: None)
    arguments = ["verify_mlc", "--quantizations", "nvfp4_skel", "--target", "sm_90", "--prepare"]
    for model_ in ("llama", "mixtral"):  # the second beside what the first left
        monkeypatch.setattr("sys.argv", [*arguments, "--models", model_, "--folder", str(folder)])
        verify_mlc.main()
    shutil.copytree(folder, copy)
    for library in copy.rglob("lib.so"):
        library.with_name("lib.so.xz").write_bytes(lzma.compress(library.read_bytes()))
        library.unlink()

    loaded = []

    def compiled(library, parameters, *, device):
        loaded.append((library.read_text(), parameters, device))
        return types.SimpleNamespace(steps=lambda prompt, tokens, batch: model[2])

    monkeypatch.setattr(verify_mlc.mlc_llm_model, "CompiledModel", compiled)
    monkeypatch.setattr(verify_mlc.mlc_llm_model, "read_parameters", lambda out: out.relative_to(copy).name)
    monkeypatch.setattr(verify_mlc.mlc_llm_model, "missing", lambda: "not here")
    file = tmp_path / "out.json"
    monkeypatch.setattr("sys.argv", ["verify_mlc", "--run", str(copy), "--json", str(file)])
    verify_mlc.main()
    rows = json.loads(file.read_text())["rows"]
    assert [row["model"] for row in rows] == ["llama"] * 4 + ["mixtral"] * 3
    assert {row["target"] for row in rows} == {"sm_90"}
    assert all(row["greedy_equal"] == 9 and row["cosine_prefill"] == pytest.approx(1) for row in rows)
    assert [("cosine_transformers_min" in row) for row in rows] == [True] * 3 + [False] + [True] * 3
    built = "nvidia/nvidia-h100 --host x86_64-linux-gnu False"
    assert [(text, device) for text, _, device in loaded] == [(built, "cuda")] * len(rows)
    assert loaded[1][1] == "llama-compressed-tensors-nvfp4_skel"


def test_a_library_that_does_not_run_leaves_the_other_rows(monkeypatch, tmp_path):
    cases = [
        verify_mlc.Case("sm_90", model, "bf16", "q0f32", tmp_path, tmp_path, [], [], np.zeros(1))
        for model in ("llama", "phi3")
    ]

    def compare(case, device):
        if case.model == "llama":
            raise RuntimeError("does not load")
        return {**case.key, "device": device}

    monkeypatch.setattr(verify_mlc, "prepared", lambda _: (cases, "0123"))
    monkeypatch.setattr(verify_mlc, "compare", compare)
    file = tmp_path / "out.json"
    monkeypatch.setattr("sys.argv", ["verify_mlc", "--run", str(tmp_path), "--json", str(file)])
    verify_mlc.main()
    first, second = json.loads(file.read_text())["rows"]
    assert first["error"] == "RuntimeError: does not load" and second["device"] == "cuda"


@pytest.mark.parametrize(
    "arguments, why",
    [(["--prepare"], "--folder says where"), (["--target", "sm_90"], "here with --prepare")],
)
def test_what_does_not_fit_is_refused(arguments, why, monkeypatch):
    monkeypatch.setattr(verify_mlc.mlc_llm_model, "missing", lambda: None)
    monkeypatch.setattr("sys.argv", ["verify_mlc", *arguments])
    with pytest.raises(SystemExit, match=why):
        verify_mlc.main()


def test_the_base_of_rope_is_spelt_as_mlc_llm_reads_it(tmp_path):
    sliding = {"sliding_attention": {"rope_theta": 3.0}}
    for parameters in ({"rope_theta": 5.0}, {"full_attention": {"rope_theta": 5.0}, **sliding}):
        (tmp_path / "config.json").write_text(json.dumps({"rope_parameters": parameters}))
        verify_mlc.old_spelling(tmp_path / "config.json")
        assert json.loads((tmp_path / "config.json").read_text())["rope_theta"] == 5.0
