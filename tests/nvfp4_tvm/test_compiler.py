"""Checkpoints compiled for the CPU give the logits and tokens of transformers on exactly dequantized weights."""

import json
import re

import numpy as np
import pytest
from fixtures import fixture_folder
from make_checkpoints import make_compressed_tensors, make_modelopt, make_plain
from reference import cosine, reference_logits, reference_model, reference_steps

import nvfp4_tvm
from nvfp4_tvm.checkpoint import open_checkpoint
from nvfp4_tvm.checkpoint.storage import open_shards
from nvfp4_tvm.errors import NVFP4Error, TargetError
from nvfp4_tvm.runtime.folder import MANIFEST, PARAMS

STEPS = 16


def plain_mistral(folder):
    """An unquantized checkpoint, in two shards."""
    return make_plain(folder, arch="mistral", max_shard_size="300KB")


CHECKPOINTS = {
    "fixture-modelopt-llama": lambda folder: fixture_folder("modelopt_llama_tiny"),
    "fixture-compressed-tensors-qwen3": lambda folder: fixture_folder("compressed_tensors_qwen3_tiny"),
    # One layer unquantized by a wildcard: its q, k, v are plain, the other layer's packed.
    "modelopt-exclude": lambda folder: make_modelopt(folder, arch="llama", exclude=("*layers.0*",), seed=1),
    # Only the k projection of layer 1 unquantized: q, k, v of one fused layer differ in format. Tied head.
    "modelopt-tied-partial-qwen3": lambda folder: make_modelopt(
        folder, arch="qwen3", tie=True, exclude=("*layers.1.self_attn.k_proj*",), seed=2
    ),
    # Biases on q, k, v; each part its own global scale; a regular expression in `ignore`.
    "compressed-tensors-qwen2": lambda folder: make_compressed_tensors(
        folder, arch="qwen2", ignore=("lm_head", "re:.*layers[.]0[.]mlp[.].*"), seed=3
    ),
    # A quantized head.
    "compressed-tensors-head-llama": lambda folder: make_compressed_tensors(
        folder, arch="llama", ignore=(), seed=4
    ),
    "plain-mistral": plain_mistral,
}


@pytest.fixture(scope="module", params=CHECKPOINTS)
def compiled(request, tmp_path_factory):
    folder = CHECKPOINTS[request.param](tmp_path_factory.mktemp("checkpoint"))
    output = tmp_path_factory.mktemp("compiled") / "out"
    stages = []
    model = nvfp4_tvm.compile(
        folder, output, target="llvm", use_cache=False, progress=lambda *step: stages.append(step)
    )
    return folder, model, stages


def test_logits_and_tokens(compiled):
    folder, model, _ = compiled
    reference, runner = reference_model(folder), nvfp4_tvm.load(model.path)
    prompt = [int(i) for i in np.random.default_rng(0).integers(0, 512, 37)]
    assert cosine(runner.logits(prompt), reference_logits(reference, prompt)).min() >= 0.9999
    tokens, logits = reference_steps(reference, prompt, STEPS)
    runner.reset()
    found = [runner.prefill(prompt)]
    for token in tokens[:-1]:
        found.append(runner.decode(token))
    assert cosine(np.stack(found), logits).min() >= 0.9999
    assert [int(step.argmax()) for step in found] == tokens
    assert list(runner.generate(prompt, STEPS).token_ids) == tokens


def test_parameters_are_packed_and_nothing_else(compiled):
    folder, model, _ = compiled
    shards = open_shards(model.path, PARAMS)
    assert set(shards) == set(model.manifest.param_names)
    fields = {name.rsplit(".", 1)[-1] for name in shards}
    assert not fields & {"codes", "scales_canonical"}
    packed = sum(name.endswith(".packed.words") for name in shards)
    assert packed == model.manifest.quantized_layers
    checkpoint = open_checkpoint(folder)
    assert (packed > 0) == any(checkpoint.is_quantized(module) for module in checkpoint.module_names())


def test_progress_and_files(compiled):
    folder, model, stages = compiled
    for stage in ("verify", "build", "pack"):
        steps = [(done, total) for name, done, total in stages if name == stage]
        assert steps[0][0] == 0 and steps[-1][0] == steps[-1][1] > 0
    assert json.loads((model.path / "config.json").read_text()) == json.loads(
        (folder / "config.json").read_text()
    )
    assert not [path for path in model.path.parent.iterdir() if path.name.startswith(".")]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return make_modelopt(tmp_path_factory.mktemp("llama"), seed=5)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"context_length": 0}, "context_length is 0, expected 1 to 256"),
        ({"context_length": 257}, "context_length is 257, expected 1 to 256"),
        ({"context_length": 64, "prefill_chunk_size": 65}, "prefill_chunk_size is 65, expected 1 to 64"),
        ({"dtype": "float64"}, "model dtype is 'float64'"),
        ({"target": "vulkan"}, "vulkan"),
    ],
)
def test_refused_options(llama, tmp_path, options, match):
    with pytest.raises(NVFP4Error, match=match):
        nvfp4_tvm.compile(llama, tmp_path / "out", **{"target": "llvm", **options})
    assert not list(tmp_path.iterdir())


def test_existing_output_is_kept(llama, tmp_path):
    (tmp_path / "mine").write_text("data")
    with pytest.raises(NVFP4Error, match="exists; choose another output or pass --force"):
        nvfp4_tvm.compile(llama, tmp_path, target="llvm")
    with pytest.raises(NVFP4Error, match=f"is no compiled folder .no {re.escape(MANIFEST)}"):
        nvfp4_tvm.compile(llama, tmp_path, target="llvm", force=True)
    assert (tmp_path / "mine").read_text() == "data"


def test_no_linker_is_a_clear_error(llama, tmp_path, monkeypatch):
    monkeypatch.setattr("nvfp4_tvm.compiler.shutil.which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(TargetError, match=r"no C\+\+ compiler to link the library with"):
        nvfp4_tvm.compile(llama, tmp_path / "out", target="llvm", use_cache=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", ["cuda:sm_89"])
def test_compiles_for_cuda_without_a_gpu(llama, tmp_path, target):
    model = nvfp4_tvm.compile(llama, tmp_path / "out", target=target, context_length=64, use_cache=False)
    assert model.manifest.device_type == "cuda" and model.manifest.dtype == "bfloat16"
    ours = {name: use for name, use in model.log.usage.items() if "nvfp4" in name}
    assert any("silu_mul" in name for name in ours) and any("residual" in name for name in ours)
    assert all(use.spill_stores == 0 for use in ours.values())
    # Machine code, not source: what the library holds is the fatbins the build made.
    library = (model.path / "lib.so").read_bytes()
    assert all(module.ptx_arch and module.fatbin in library for module in model.log.modules)
