"""Genuine checkpoints, against the libraries that wrote them."""

import make_checkpoints
import ml_dtypes
import numpy as np
import pytest
import safetensors
import torch
from fixtures import fixture_folder

from nvfp4_tvm import numerics
from nvfp4_tvm.checkpoint import open_checkpoint
from nvfp4_tvm.errors import CheckpointError

PARTS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
PARTS += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def check_whole(folder, quantized, library):
    checkpoint = open_checkpoint(folder)
    checkpoint.verify()
    layers = checkpoint.layers()
    assert {n for n, i in layers.items() if i.format == "nvfp4"} == set(quantized)
    assert not any(i.refusal for i in layers.values())
    assert layers == checkpoint.layers(read_data=False)
    size = 0
    with safetensors.safe_open(folder / "model.safetensors", "pt") as f:
        assert checkpoint.names() == sorted(f.keys())
        for name in f.keys():  # noqa: SIM118
            want, got = f.get_tensor(name), checkpoint.tensor(name)
            assert got.shape == tuple(want.shape) == checkpoint.tensor_info(name).shape
            assert got.tobytes() == want.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            assert not got.flags.writeable
            size += want.nbytes
        assert sum(i.nbytes for i in layers.values()) == size
        for module in quantized:
            assert checkpoint.is_quantized(module)
            t = checkpoint.nvfp4(module)
            assert layers[module].shape == t.shape
            want = library(f, module).float().numpy()
            got = t.dequantize(np.float32)
            np.testing.assert_allclose(got, want, rtol=3e-7, atol=0)
    return checkpoint


def modelopt_dequantize(f, module):
    from modelopt.torch.quantization.qtensor import NVFP4QTensor

    w = f.get_tensor(f"{module}.weight")
    q = NVFP4QTensor(torch.Size((w.shape[0], w.shape[1] * 2)), torch.float32, w)
    scale, double = f.get_tensor(f"{module}.weight_scale"), f.get_tensor(f"{module}.weight_scale_2")
    return q.dequantize(torch.float32, scale=scale, double_scale=double, block_sizes={-1: 16})


def compressed_tensors_dequantize(f, module):
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8

    w = f.get_tensor(f"{module}.weight_packed")
    values = unpack_fp4_from_uint8(w, w.shape[0], w.shape[1] * 2, torch.float32)
    scale = f.get_tensor(f"{module}.weight_scale").float() / f.get_tensor(f"{module}.weight_global_scale")
    return values * scale.repeat_interleave(16, 1)


LIBRARY = {"modelopt": modelopt_dequantize, "compressed-tensors": compressed_tensors_dequantize}
ALL = [f"model.layers.{i}.{p}" for i in range(2) for p in PARTS]


def test_modelopt(modelopt_folder):
    checkpoint = check_whole(modelopt_folder, ALL, modelopt_dequantize)
    assert checkpoint.format == "modelopt"
    # ModelOpt gives the parts of a fused layer one scale
    scales = {checkpoint.nvfp4(f"model.layers.0.{p}").global_scale for p in PARTS[:3]}
    assert len(scales) == 1


def test_compressed_tensors(compressed_tensors_folder):
    checkpoint = check_whole(compressed_tensors_folder, ALL, compressed_tensors_dequantize)
    assert checkpoint.format == "compressed-tensors"
    scales = {checkpoint.nvfp4(f"model.layers.0.{p}").global_scale for p in PARTS[:3]}
    assert len(scales) == 3


@pytest.mark.parametrize("name", ["modelopt_llama_tiny", "compressed_tensors_qwen3_tiny"])
def test_fixtures(name):
    form = "modelopt" if name.startswith("modelopt") else "compressed-tensors"
    assert check_whole(fixture_folder(name), ALL, LIBRARY[form]).format == form


@pytest.mark.parametrize("arch", ["qwen2", "mistral"])
def test_modelopt_exclusions_and_ties(tmp_path, arch):
    folder = make_checkpoints.make_modelopt(
        tmp_path, arch=arch, tie=arch == "qwen2", exclude=["*layers.0.mlp*"]
    )
    quantized = [m for m in ALL if "layers.0.mlp" not in m]
    checkpoint = check_whole(folder, quantized, modelopt_dequantize)
    assert ("lm_head" in checkpoint.layers()) == (arch == "mistral")
    assert not checkpoint.is_quantized("model.layers.0.mlp.up_proj")
    assert checkpoint.tensor("model.layers.0.mlp.up_proj.weight").dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_compressed_tensors_exclusions_and_activations(tmp_path, arch):
    folder = make_checkpoints.make_compressed_tensors(
        tmp_path, arch=arch, tie=True, scheme="NVFP4", ignore=["lm_head", r"re:.*layers\.1\.mlp.*"]
    )
    checkpoint = check_whole(
        folder, [m for m in ALL if "layers.1.mlp" not in m], compressed_tensors_dequantize
    )
    assert "model.layers.0.mlp.up_proj.input_global_scale" in checkpoint.names()
    assert ("model.layers.0.self_attn.q_proj.bias" in checkpoint.names()) == (arch == "qwen2")


def test_shards_equal_the_single_file(tmp_path, compressed_tensors_folder):
    folder = make_checkpoints.make_compressed_tensors(tmp_path, max_shard_size="100KB")
    sharded, single = open_checkpoint(folder), open_checkpoint(compressed_tensors_folder)
    assert len({i.file for i in sharded.layers().values()}) > 2
    assert sharded.names() == single.names()
    for name in single.names():
        assert sharded.tensor(name).tobytes() == single.tensor(name).tobytes()


def test_reads_lazily_and_releases(modelopt_folder):
    checkpoint = open_checkpoint(modelopt_folder)
    view = checkpoint.tensor("model.embed_tokens.weight")
    assert view.base is not None
    before = view.copy()
    checkpoint.release("model.embed_tokens.weight")
    np.testing.assert_array_equal(view.view(np.uint16), before.view(np.uint16))


def test_unknown_names(plain_folder):
    checkpoint = open_checkpoint(plain_folder)
    for call in (
        checkpoint.tensor,
        checkpoint.tensor_info,
        checkpoint.is_quantized,
        checkpoint.nvfp4,
        checkpoint.release,
    ):
        with pytest.raises(CheckpointError, match="nothing"):
            call("model.nothing")
    with pytest.raises(CheckpointError, match="is plain, expected nvfp4"):
        checkpoint.nvfp4("model.norm")


def test_what_a_quantizer_wrote_is_read_back(modelopt_folder):
    """The canonical tensor is what this package's own quantizer makes of the same weight."""
    checkpoint = open_checkpoint(modelopt_folder)
    model = make_checkpoints.make_model("llama")
    weights = {n: p.detach().float().numpy() for n, p in model.named_parameters()}
    down = "model.layers.1.mlp.down_proj"
    codes, scales, gs = numerics.quantize(weights[f"{down}.weight"])
    t = checkpoint.nvfp4(down)
    np.testing.assert_array_equal(t.codes, codes)
    np.testing.assert_array_equal(t.scales, scales)
    assert t.global_scale == gs
