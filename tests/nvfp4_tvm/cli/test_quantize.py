import json

import pytest

from nvfp4_tvm.checkpoint import open_checkpoint


@pytest.mark.parametrize("form", ["compressed-tensors", "modelopt"])
def test_formats(cli, plain_folder, tmp_path, form):
    done = cli("quantize", plain_folder, tmp_path / "out", "--format", form, "--json")
    assert done.code == 0 and done.err == ""
    report = json.loads(done.out)
    assert report["path"] == str(tmp_path / "out") and report["format"] == form
    checkpoint = open_checkpoint(tmp_path / "out")
    checkpoint.verify()
    assert checkpoint.format == form
    assert report["layers"] == 7 == sum(map(checkpoint.is_quantized, checkpoint.module_names()))
    assert report["mb_per_s"] > 0 and (tmp_path / "out" / "tokenizer.json").is_file()


def test_the_line_for_people(cli, plain_folder, tmp_path):
    done = cli("quantize", plain_folder, tmp_path / "out")
    assert done.code == 0 and done.err == "" and done.out.count("\n") == 1
    assert done.out.startswith("quantized 7 layers and kept 2 of ")
    assert " read, " in done.out and "/s, peak memory " in done.out


def test_options_reach_the_quantizer(cli, plain_folder, tmp_path):
    done = cli(
        "quantize", plain_folder, tmp_path / "out", "--method", "four-over-six", "--separate-global-scales",
        "--exclude", "*.k_proj", "--exclude", "re:.*up_proj$", "--json",
    )  # fmt: skip
    report = json.loads(done.out)
    assert report["method"] == "four_over_six" and report["layers"] == 5
    assert {name.rpartition(".")[2] for name in report["kept"]} == {
        "k_proj", "up_proj", "lm_head", "embed_tokens",
    }  # fmt: skip
    checkpoint = open_checkpoint(tmp_path / "out")
    q, v = (checkpoint.nvfp4(f"model.layers.0.self_attn.{part}_proj").global_scale for part in "qv")
    assert q != v
    assert cli("quantize", plain_folder, tmp_path / "shared", "--json").code == 0
    checkpoint = open_checkpoint(tmp_path / "shared")
    q, v = (checkpoint.nvfp4(f"model.layers.0.self_attn.{part}_proj").global_scale for part in "qv")
    assert q == v


def test_refusals(cli, plain_folder, nvfp4_folder, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    for arguments, message in (
        ((nvfp4_folder, tmp_path / "a"), "expected an unquantized checkpoint"),
        ((plain_folder, tmp_path / "full"), "expected an empty folder"),
        ((plain_folder, tmp_path / "b", "--exclude", "*.q_porj"), "names no module"),
    ):
        done = cli("quantize", *arguments)
        assert done.code == 2 and message in done.err and done.err.count("\n") == 1
    assert [file.name for file in (tmp_path / "full").iterdir()] == ["file"]
