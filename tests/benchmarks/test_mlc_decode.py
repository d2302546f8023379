import argparse
import json
import subprocess
import sys
from pathlib import Path

import benchmark_modules
import numpy as np
import pytest
from mlc_llm_model import missing

from benchmarks import mlc_decode
from benchmarks.mlc_libraries import VARIANTS


def test_variants_are_named_once_and_nvfp4_comes_first():
    names = [variant.name for variant in VARIANTS]
    assert len(set(names)) == len(names) and names[0].startswith("nvfp4")
    assert {"q4f16_1", "q0f16"} <= set(names)


def describe(folder, *names):
    described = {"quantization": "q", "cuda_graph": True, "model_dtype": "float16", "library_bytes": 1}
    described.update(
        compile_seconds=1, shape={"max_batch_size": 4, "prefill_chunk_size": 8}, target="t", mlc_llm="c"
    )
    for name in names:
        (folder / f"{name}.json").write_text(json.dumps({**described, "name": name}))
        (folder / f"{name}.so.xz").write_bytes(b"no library")


def arguments(folder, **more):
    common = {"device": "cpu", "context": 16, "prefill": 64, "repeats": 2, "seconds": 200}
    return argparse.Namespace(libs=folder, output=folder / "out.json", **{**common, **more})


def test_a_library_that_does_not_load_is_a_row_with_an_error(tmp_path):
    describe(tmp_path, "q4f16_1")
    given = arguments(tmp_path, one=tmp_path / "q4f16_1.json")
    mlc_decode.run_one(given)
    row = json.loads(given.output.read_text())
    assert row["name"] == "q4f16_1" and "LZMAError" in row["error"]


def test_what_went_wrong_in_another_process():
    assert mlc_decode.apart([sys.executable, "-c", ""], 60) is None
    assert mlc_decode.apart([sys.executable, "-c", "import sys; sys.exit('no')"], 60) == "exit code 1: no\n"
    assert (
        mlc_decode.apart([sys.executable, "-c", "import time; time.sleep(60)"], 0.2) == "not done after 0 s"
    )


def test_a_library_that_fails_does_not_take_the_others_along(tmp_path, monkeypatch):
    names = ("nvfp4_skel_head", "q4f16_1", "q0f16", "nvfp4_skel", "nvfp4_skel_no_graph")
    describe(tmp_path, *names)

    def apart(command, _seconds):
        name, output = Path(command[4]).stem, Path(command[command.index("-o") + 1])
        if name in ("q4f16_1", "q0f16"):
            return f"{name} failed"
        output.write_text(json.dumps({"name": name, "decode_1_ms": 1.25}))
        np.save(output.with_suffix(".npy"), np.ones(3))
        return None

    monkeypatch.setattr(mlc_decode, "apart", apart)
    monkeypatch.setattr(mlc_decode, "torch_linears", lambda *_: {"tokens": 1 // 0})
    given = arguments(tmp_path)
    mlc_decode.run(given)
    written = json.loads(given.output.read_text())
    first, second, third, _, last = written["rows"]
    assert [row["name"] for row in written["rows"]] == list(names)
    assert first["decode_1_ms"] == 1.25
    assert (second["error"], third["error"]) == ("q4f16_1 failed", "q0f16 failed")
    assert last["graph_equal"] is True and "graph_equal" not in first
    assert "ZeroDivisionError" in written["torch"]["error"]
    assert "| nvfp4_skel_head | 1.25 |" in mlc_decode.table(written["rows"], written)


@pytest.mark.slow
@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_libraries_of_mlc_on_the_cpu_compute_their_model(tmp_path):
    # In a process of its own: this one may have imported the stand-in for MLC-LLM
    code = (
        "import sys; from pathlib import Path; from benchmarks import mlc_decode; "
        "mlc_decode.build_all(['nvfp4_skel'], mlc_decode.SHAPES['tiny'], 'cpu:0', Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=benchmark_modules.ROOT, check=True)
    given = arguments(tmp_path)
    mlc_decode.run(given)
    (row,) = json.loads(given.output.read_text())["rows"]
    assert row["finite"] and row["replay_equal"]
    assert min(row["cosine_prefill"], row["cosine_decode"]) > 0.9999
    assert min(row["decode_1_ms"], row["decode_single_ms"], row["prefill_ms"]) > 0
    assert any(name.startswith("nvfp4_matmul") for name in row["prefill_parts_ms"])
