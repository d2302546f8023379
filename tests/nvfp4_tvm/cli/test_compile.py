import json
from pathlib import Path

import pytest

from nvfp4_tvm.runtime.folder import Manifest

pytestmark = pytest.mark.xdist_group("compiled")


@pytest.fixture
def recorded(monkeypatch, compiled_folder):
    """Replace the compiler, whose own tests are elsewhere, by one that notes its arguments."""
    from nvfp4_tvm.compiler import CompiledModel

    calls = []

    def compile(checkpoint, output, **options):
        calls.append((checkpoint, output, options))
        options["progress"]("build", 2, 2)
        return CompiledModel(compiled_folder, Manifest.read(compiled_folder), None, 4321, ("library",))

    monkeypatch.setattr("nvfp4_tvm.compiler.compile", compile)
    return calls


def test_defaults(cli, recorded):
    assert cli("compile", "ckpt", "-o", "out").code == 0
    ((checkpoint, output, options),) = recorded
    assert (checkpoint, output) == (Path("ckpt"), Path("out"))
    assert callable(options.pop("progress"))
    assert options == {
        "target": "auto", "dtype": None, "context_length": None, "prefill_chunk_size": None,
        "tuning_db": None, "force": False, "use_cache": True,
    }  # fmt: skip


def test_options_reach_the_compiler(cli, recorded):
    done = cli(
        "compile", "ckpt", "--output", "out", "--target", "cuda:sm_89", "--dtype", "float16",
        "--context-length", "64", "--prefill-chunk-size", "32", "--tuning-db", "db.jsonl", "--force",
        "--no-cache",
    )  # fmt: skip
    assert done.code == 0
    options = recorded[0][2]
    del options["progress"]
    assert options == {
        "target": "cuda:sm_89", "dtype": "float16", "context_length": 64, "prefill_chunk_size": 32,
        "tuning_db": Path("db.jsonl"), "force": True, "use_cache": False,
    }  # fmt: skip


def test_output(cli, recorded, compiled_folder):
    done = cli("compile", "ckpt", "-o", "out")
    assert done.out.count("\n") == 1 and done.err == ""
    assert done.out.startswith(
        "compiled llama with 4 NVFP4 layers for llvm in float32, context 64, library from "
    )
    assert "4.3 kB read, " in done.out and "/s, peak memory " in done.out
    report = json.loads(cli("compile", "ckpt", "-o", "out", "--json").out)
    assert report["path"] == str(compiled_folder) and report["seconds"] > 0
    assert report["bytes"] == sum(file.stat().st_size for file in compiled_folder.iterdir())
    assert report["bytes_read"] == 4321 and report["cached"] == ["library"] and report["peak_bytes"] > 1 << 20
    assert report["manifest"] == json.loads((compiled_folder / "nvfp4_tvm.json").read_text())


@pytest.mark.parametrize("target", ["cuda:sm_70", "vulkan", "llvm -nonsense"])
def test_target_errors(cli, nvfp4_folder, tmp_path, target):
    done = cli("compile", nvfp4_folder, "-o", tmp_path / "out", "--target", target)
    assert done.code == 2 and done.out == "" and done.err.startswith("nvfp4-tvm: error: ")
    assert done.err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_an_existing_output_is_kept(cli, nvfp4_folder, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for more, message in (((), "--force"), (("--force",), "no compiled folder")):
        done = cli("compile", nvfp4_folder, "-o", tmp_path, "--target", "llvm", *more)
        assert done.code == 2 and message in done.err
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
