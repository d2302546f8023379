import json
import shutil

import pytest
import raw_checkpoints
from fixtures import fixture_folder

from nvfp4_tvm.checkpoint import open_checkpoint


def load(done):
    assert done.code == 0 and done.err == "", done.err
    return json.loads(done.out)


@pytest.mark.parametrize("name", ["modelopt_llama_tiny", "compressed_tensors_qwen3_tiny"])
def test_genuine_checkpoints_compile(cli, name):
    folder = fixture_folder(name)
    report = load(cli("inspect", folder, "--json"))
    assert report["kind"] == "checkpoint" and report["compile"] == {"supported": True, "reason": None}
    assert report["totals"]["nvfp4"]["layers"] == 14
    assert report["bytes"] == sum(layer["nbytes"] for layer in report["layers"])


def test_the_table_says_what_the_json_says(cli, nvfp4_folder):
    report = load(cli("inspect", nvfp4_folder, "--json"))
    table = cli("inspect", nvfp4_folder).out
    rows = {words[0]: words for words in map(str.split, table.splitlines()) if words}
    for layer in report["layers"]:
        shape = "x".join(map(str, layer["shape"]))
        assert rows[layer["name"]] == [
            layer["name"], layer["format"], shape, str(layer["nbytes"]), layer["file"],
        ]  # fmt: skip
    q = rows["model.layers.0.self_attn.q_proj"]
    assert q[1:4] == ["nvfp4", "64x64", str(64 * 64 // 2 + 64 * 64 // 16 + 4)]
    assert "nvfp4: 7 layers, " in table and "format: compressed-tensors" in table
    assert table.endswith("compiles: yes\n") and "refused" not in table


def test_totals(cli, nvfp4_folder):
    report = load(cli("inspect", nvfp4_folder, "--json"))
    for name, total in report["totals"].items():
        layers = [layer for layer in report["layers"] if layer["format"] == name]
        assert total["layers"] == len(layers) and total["bytes"] == sum(x["nbytes"] for x in layers)
    # q, o: 64x64; k, v: 32x64; gate, up, down: 64x64
    assert report["totals"]["nvfp4"]["weights"] == 6 * 64 * 64


def test_refused_layers_are_listed_with_the_reason(cli, tmp_path):
    tensors = raw_checkpoints.tensors("modelopt")
    name = f"{raw_checkpoints.UP}.weight_scale"
    data = bytearray(tensors[name].data)
    data[5] = 0x7F  # NaN in E4M3
    tensors[name].data = bytes(data)
    folder = raw_checkpoints.write(tmp_path / "bad", "modelopt", tensors)
    report = load(cli("inspect", folder, "--json"))
    refused = {layer["name"]: layer["refusal"] for layer in report["layers"] if layer["refusal"]}
    assert list(refused) == [raw_checkpoints.UP] and "NaN" in refused[raw_checkpoints.UP]
    assert report["compile"] == {"supported": False, "reason": refused[raw_checkpoints.UP]}
    table = cli("inspect", folder).out
    assert "refused because" in table and "NaN" in table and "compiles: no: " in table


def test_other_quantizations_are_listed(cli, tmp_path):
    config = raw_checkpoints.config("modelopt") | {"quantization_config": {"quant_method": "awq", "bits": 4}}
    folder = raw_checkpoints.write(tmp_path / "awq", "modelopt", cfg=config)
    report = load(cli("inspect", folder, "--json"))
    assert report["format"] == "awq" and not report["compile"]["supported"]
    assert "awq" in report["compile"]["reason"]


def test_models_that_are_not_supported_still_show(cli, tmp_path, nvfp4_folder):
    folder = shutil.copytree(nvfp4_folder, tmp_path / "mamba")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))
    report = load(cli("inspect", folder, "--json"))
    assert report["totals"]["nvfp4"]["layers"] == 7
    assert "model_type is 'mamba'" in report["compile"]["reason"]


def test_missing_layers_are_noticed(cli, tmp_path):
    folder = raw_checkpoints.write(tmp_path / "partial", "compressed-tensors")
    config = json.loads((folder / "config.json").read_text())
    shape = {
        "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "vocab_size": 16, "max_position_embeddings": 64,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config | shape))
    report = load(cli("inspect", folder, "--json"))
    assert "found no such tensor" in report["compile"]["reason"]
    assert all(layer["refusal"] is None for layer in report["layers"])


def test_names_do_not_reach_the_terminal_raw(cli, tmp_path):
    tensors = raw_checkpoints.tensors("none")
    tensors["evil\x1b[2J.[red]x.weight"] = tensors["model.norm.weight"]
    plain = {name: t for name, t in tensors.items() if not name.startswith(raw_checkpoints.UP)}
    folder = raw_checkpoints.write(tmp_path / "evil", "none", plain)
    assert any("\x1b" in name for name in open_checkpoint(folder).names())
    done = cli("inspect", folder)
    assert done.code == 0 and "\x1b" not in done.out and r"evil\x1b[2J.[red]x" in done.out


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: p.write_text("x")])
def test_what_is_no_checkpoint_is_an_error(cli, tmp_path, make):
    make(tmp_path / "nothing")
    done = cli("inspect", tmp_path / "nothing")
    assert done.code == 2 and done.out == "" and done.err.startswith("nvfp4-tvm: error: ")
    assert done.err.count("\n") == 1


@pytest.mark.xdist_group("compiled")
def test_compiled_folder(cli, compiled_folder):
    report = load(cli("inspect", compiled_folder, "--json"))
    manifest = json.loads((compiled_folder / "nvfp4_tvm.json").read_text())
    names = manifest.pop("param_names")
    assert report["kind"] == "compiled" and report["manifest"] == manifest
    assert [parameter["name"] for parameter in report["parameters"]] == names
    assert report["parameter_bytes"] == sum(parameter["nbytes"] for parameter in report["parameters"])
    assert report["library_bytes"] == (compiled_folder / "lib.so").stat().st_size
    assert report["tokenizer"] is True
    table = cli("inspect", compiled_folder).out
    assert all(name in table for name in names) and "target: llvm" in table


@pytest.mark.xdist_group("compiled")
def test_damaged_compiled_folder(cli, tmp_path, compiled_folder):
    folder = shutil.copytree(compiled_folder, tmp_path / "damaged")
    (folder / "params.safetensors").unlink()
    done = cli("inspect", folder)
    assert done.code == 2 and done.out == "" and done.err.count("\n") == 1
