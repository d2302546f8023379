"""The plug-in activates itself as MLC-LLM is imported, whoever is imported first, in new processes too."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SHOW = """
import json, sys
from mlc_llm.model import MODELS
from mlc_llm.quantization import QUANTIZATION
from mlc_llm.loader import LOADER
import mlc_llm.interface.gen_config, mlc_llm.interface.convert_weight, mlc_llm.compiler_pass.pipeline
from tvm.relax.pipeline import PIPELINE_MAP
print(json.dumps({
    "quantizations": list(QUANTIZATION),
    "pipeline": hasattr(PIPELINE_MAP["mlc_llm"], "_nvfp4_tvm_pipeline"),
    "wrapped": [
        mlc_llm.interface.gen_config.gen_config.__wrapped__.__name__,
        mlc_llm.interface.convert_weight.convert_weight.__wrapped__.__name__,
    ],
    "models": {name: list(model.quantize) for name, model in MODELS.items()},
}))
"""
LAST = SHOW.replace("print(", "import nvfp4_tvm.mlc\nprint(")
BY_HOOK = "import nvfp4_tvm_mlc_hook\n" + SHOW


@pytest.mark.parametrize("code", [LAST, BY_HOOK], ids=["mlc_llm first", "hook"])
def test_registries(code):
    path = os.pathsep.join([str(ROOT / "tests" / "helpers" / "mlc_stand_in"), str(ROOT / "startup")])
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert {"nvfp4_skel", "nvfp4_skel_f16", "q0bf16"} <= set(shown["quantizations"])
    assert "nvfp4" in shown["models"]["small"]
    assert shown["models"]["other"] == ["no-quant"]
    assert shown["wrapped"] == ["gen_config", "convert_weight"]
    assert shown["pipeline"]


def test_importing_the_plug_in_imports_neither_mlc_llm_nor_tvm():
    code = "import sys, nvfp4_tvm.mlc; print([name for name in ('mlc_llm', 'tvm') if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests" / "helpers" / "mlc_stand_in")},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == "[]\n", done.stderr


def test_activating_twice_wraps_once(mlc_llm, small):
    from nvfp4_tvm.mlc import activate

    before = small.source["huggingface-safetensor"], mlc_llm.interface.gen_config.gen_config
    activate()
    assert (small.source["huggingface-safetensor"], mlc_llm.interface.gen_config.gen_config) == before
