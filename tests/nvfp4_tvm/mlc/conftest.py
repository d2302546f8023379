"""Puts the stand-in for MLC-LLM on the path, and makes checkpoints of its model."""

import itertools
import json
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from nvfp4_tvm.quantize import quantize_checkpoint

STAND_IN = str(Path(__file__).parents[2] / "helpers" / "mlc_stand_in")
if STAND_IN not in sys.path:
    sys.path.insert(0, STAND_IN)

HIDDEN, INTERMEDIATE, VOCABULARY = 128, 512, 512


def write_plain(folder, layers=2):
    """Write a bfloat16 checkpoint of the stand-in's model; every weight has a magnitude of its own."""
    rng, tensors = np.random.default_rng(0), {}

    def add(name, *shape):
        values = rng.standard_normal(shape) * rng.uniform(0.02, 0.5)
        tensors[name] = values.astype(ml_dtypes.bfloat16)

    add("model.embed_tokens.weight", VOCABULARY, HIDDEN)
    add("lm_head.weight", VOCABULARY, HIDDEN)
    add("model.vision.weight", HIDDEN, HIDDEN)
    for index in range(layers):
        layer = f"model.layers.{index}"
        for part, rows in (("q_proj", 128), ("k_proj", 64), ("v_proj", 64)):
            add(f"{layer}.{part}.weight", rows, HIDDEN)
            add(f"{layer}.{part}.bias", rows)
        add(f"{layer}.o_proj.weight", HIDDEN, 128)
        add(f"{layer}.gate_proj.weight", INTERMEDIATE, HIDDEN)
        add(f"{layer}.up_proj.weight", INTERMEDIATE, HIDDEN)
        add(f"{layer}.down_proj.weight", HIDDEN, INTERMEDIATE)
        add(f"{layer}.gate.weight", 8, HIDDEN)
        add(f"{layer}.norm.weight", HIDDEN)
        for expert, part in itertools.product(range(2), ("gate", "up")):
            add(f"{layer}.experts.{expert}.{part}_proj.weight", 32, HIDDEN)
    save_file(tensors, folder / "model.safetensors")
    config = {"model_type": "small", "num_hidden_layers": layers, "rms_norm_eps": 1e-6}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def plain(tmp_path_factory):
    """A bfloat16 checkpoint of two layers."""
    return write_plain(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="session")
def tall(tmp_path_factory):
    """A bfloat16 checkpoint of 16 layers, and the same in NVFP4."""
    folder = write_plain(tmp_path_factory.mktemp("tall"), 16)
    quantize_checkpoint(folder, folder.with_name("tall-quantized"))
    return folder, folder.with_name("tall-quantized")


def _quantized(plain, factory, form):
    folder = factory.mktemp(form) / "checkpoint"
    quantize_checkpoint(plain, folder, format=form, share_global_scales=False, exclude=["*.layers.1.o_proj"])
    return folder


@pytest.fixture(scope="session")
def modelopt(plain, tmp_path_factory):
    """The same in ModelOpt's format, layers.1.o_proj unquantized, a global scale of its own for every part."""
    return _quantized(plain, tmp_path_factory, "modelopt")


@pytest.fixture(scope="session")
def compressed_tensors(plain, tmp_path_factory):
    """The same in compressed-tensors' format."""
    return _quantized(plain, tmp_path_factory, "compressed-tensors")


@pytest.fixture(scope="session")
def mlc_llm():
    """The stand-in, with the plug-in active."""
    import mlc_llm.interface.convert_weight
    import mlc_llm.interface.gen_config
    import mlc_llm.model
    import mlc_llm.quantization

    import nvfp4_tvm.mlc  # noqa: F401

    return mlc_llm


@pytest.fixture(scope="session")
def small(mlc_llm):
    """The entry of the stand-in's model."""
    return mlc_llm.model.MODELS["small"]
