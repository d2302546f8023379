"""Whole checkpoints: equal to the libraries' own output, loadable by them, streamed."""

import json
import os
import subprocess
import sys

import make_checkpoints
import ml_dtypes
import numpy as np
import pytest
import raw_checkpoints as rc
import torch
import transformers

from nvfp4_tvm import numerics
from nvfp4_tvm.checkpoint import open_checkpoint
from nvfp4_tvm.errors import CheckpointError, NVFP4Error
from nvfp4_tvm.quantize import quantize_checkpoint

FORMATS = ("compressed-tensors", "modelopt")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return make_checkpoints.make_plain(tmp_path_factory.mktemp("plain"))


def assert_same_tensors(a, b):
    a, b = open_checkpoint(a), open_checkpoint(b)
    assert a.names() == b.names()
    for name in a.names():
        x, y = a.tensor(name), b.tensor(name)
        assert (x.dtype, x.shape) == (y.dtype, y.shape), name
        assert x.tobytes() == y.tobytes(), name


@pytest.mark.parametrize("arch", ["llama", "qwen3", "qwen2"])
def test_same_bytes_as_modelopt(tmp_path, arch):
    src = make_checkpoints.make_plain(tmp_path / "src", arch=arch, tie=arch == "qwen2")
    theirs = make_checkpoints.make_modelopt(
        tmp_path / "theirs", arch=arch, tie=arch == "qwen2", quant_cfg="W4A16_NVFP4_CFG"
    )
    quantize_checkpoint(src, tmp_path / "ours", format="modelopt")
    assert_same_tensors(theirs, tmp_path / "ours")
    ours, own = (json.loads((p / "hf_quant_config.json").read_text()) for p in (tmp_path / "ours", theirs))
    del ours["producer"], own["producer"]
    for config in (ours, own):
        config["quantization"]["exclude_modules"] = set(config["quantization"]["exclude_modules"])
    assert ours == own
    ours, own = (
        json.loads((p / "config.json").read_text())["quantization_config"]
        for p in (tmp_path / "ours", theirs)
    )
    assert ours.keys() == own.keys() and ours["config_groups"] == own["config_groups"]


def test_same_bytes_as_compressed_tensors(tmp_path):
    src = make_checkpoints.make_plain(tmp_path / "src", arch="qwen3")
    theirs = make_checkpoints.make_compressed_tensors(tmp_path / "theirs", arch="qwen3")
    quantize_checkpoint(src, tmp_path / "ours", share_global_scales=False)
    assert_same_tensors(theirs, tmp_path / "ours")


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("method", ["amax", "four_over_six"])
def test_loads_in_transformers(tmp_path, method, tie):
    src = make_checkpoints.make_plain(tmp_path / "src", arch="qwen3", tie=tie)
    quantize_checkpoint(src, tmp_path / "q", method=method)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "q", dtype=torch.bfloat16)
    checkpoint = open_checkpoint(tmp_path / "q")
    ids = torch.arange(1, 30)[None]
    with torch.no_grad():
        got = model(ids).logits.float()  # decompresses on the first call
        reference = make_checkpoints.make_model("qwen3", tie=tie)
        state = reference.state_dict()
        for layer in checkpoint.layers().values():
            if layer.format == "nvfp4":
                w = checkpoint.nvfp4(layer.name).dequantize(np.float32)
                state[f"{layer.name}.weight"].copy_(torch.from_numpy(w))
        want = reference(ids).logits.float()
    # the library rounds the global scale, its quotient with the block scale, and the weight to bfloat16
    weights = dict(model.named_parameters())
    for layer in checkpoint.layers().values():
        if layer.format == "nvfp4":
            ours = state[f"{layer.name}.weight"].float()
            torch.testing.assert_close(weights[f"{layer.name}.weight"].float(), ours, rtol=3 * 2**-9, atol=0)
    assert torch.nn.functional.cosine_similarity(got.flatten(), want.flatten(), dim=0) > 0.9999


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("share", [True, False])
def test_global_scales_of_fused_parts(plain, tmp_path, format, share):
    summary = quantize_checkpoint(plain, tmp_path / "q", format=format, share_global_scales=share)
    checkpoint = open_checkpoint(tmp_path / "q")
    checkpoint.verify()
    assert checkpoint.format == format
    assert summary.layers == 14 and summary.kept == ("lm_head", "model.embed_tokens")
    for parts in (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")):
        block = "self_attn" if "q_proj" in parts else "mlp"
        scales = {checkpoint.nvfp4(f"model.layers.1.{block}.{p}").global_scale for p in parts}
        assert len(scales) == (1 if share else len(parts))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("method", ["amax", "four_over_six"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_every_weight(tmp_path, format, method, dtype):
    src = make_checkpoints.make_plain(tmp_path / "src", dtype=dtype)
    seen = []
    summary = quantize_checkpoint(
        src, tmp_path / "q", format=format, method=method, share_global_scales=False,
        progress=lambda *args: seen.append(args),
    )  # fmt: skip
    source, result = open_checkpoint(src), open_checkpoint(tmp_path / "q")
    for name in source.names():
        module = name.rpartition(".")[0]
        if not result.is_quantized(module):
            assert result.tensor(name).tobytes() == source.tensor(name).tobytes()
            continue
        w = source.tensor(name)
        codes, scales, gs = numerics.quantize(w, method=method, arithmetic=format)
        tensor = result.nvfp4(module)
        np.testing.assert_array_equal(tensor.codes, codes)
        np.testing.assert_array_equal(tensor.scales, scales)
        assert tensor.global_scale == gs
        error = np.linalg.norm(tensor.dequantize() - w.astype(np.float64)) / np.linalg.norm(
            w.astype(np.float64)
        )
        assert error < 0.11  # about 0.095 for normal weights
    total = sum(source.tensor_info(n).nbytes for n in source.names())
    assert [s[0] for s in seen] == sorted(s[0] for s in seen) and seen[-1][:2] == (total, total)
    assert {s[2] for s in seen} == set(source.names())
    assert summary.bytes_read == total and summary.mb_per_s > 0
    assert summary.bytes_written == sum(p.stat().st_size for p in (tmp_path / "q").glob("*.safetensors"))


@pytest.mark.parametrize("format", FORMATS)
def test_exclude(plain, tmp_path, format):
    summary = quantize_checkpoint(
        plain,
        tmp_path / "q",
        format=format,
        exclude=["*.layers.0.mlp.*", "model.layers.1.self_attn.q_proj", "re:.*1.*o_"],
    )
    checkpoint = open_checkpoint(tmp_path / "q")
    checkpoint.verify()
    kept = {n for n, i in checkpoint.layers().items() if i.format == "bf16" and len(i.shape) == 2}
    assert kept == set(summary.kept)
    assert "model.layers.0.mlp.up_proj" in kept and "model.layers.1.self_attn.o_proj" in kept
    # k and v still share, without the excluded q
    k, v = (checkpoint.nvfp4(f"model.layers.1.self_attn.{p}_proj").global_scale for p in "kv")
    assert k == v


@pytest.mark.parametrize("format", FORMATS)
def test_shards_and_other_files(tmp_path, format):
    src = make_checkpoints.make_plain(tmp_path / "src", max_shard_size="200KB")
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "README.md",
        "special.model",
    ):
        (src / name).write_text(name)
    for name in ("pytorch_model.bin", ".hidden", "pytorch_model.bin.index.json"):
        (src / name).write_text(name)
    (src / "original").mkdir()
    quantize_checkpoint(src, tmp_path / "q", format=format, max_shard_bytes=100_000)
    names = {p.name for p in (tmp_path / "q").iterdir()}
    assert {"tokenizer.json", "chat_template.jinja", "special.model", "generation_config.json"} <= names
    assert not names & {"pytorch_model.bin", ".hidden", "pytorch_model.bin.index.json", "original"}
    assert "model.safetensors.index.json" in names
    open_checkpoint(tmp_path / "q").verify()
    quantize_checkpoint(src, tmp_path / "one", format=format)
    assert_same_tensors(tmp_path / "q", tmp_path / "one")


def source(tmp_path, **change):
    """A tiny source whose tensors can be spoilt."""
    bf16 = ml_dtypes.bfloat16
    block = "model.layers.0.mlp"
    arrays = {
        "model.embed_tokens.weight": np.ones((8, 32), bf16),
        f"{block}.up_proj.weight": np.ones((16, 32), bf16),
        f"{block}.gate_proj.weight": np.ones((16, 32), bf16),
        **{f"{block}.{k}.weight": v for k, v in change.items()},
    }
    return rc.write(tmp_path / "src", "none", {n: rc.raw(a) for n, a in arrays.items()})


def spoilt(value):
    w = np.ones((16, 32), ml_dtypes.bfloat16)
    w[3, 4] = value
    return w


BAD_WEIGHTS = {
    "nan": (spoilt(np.nan), "up_proj.weight: found NaN"),
    "inf": (spoilt(-np.inf), "up_proj.weight: found an infinite value"),
    "K": (np.ones((16, 24), ml_dtypes.bfloat16), "up_proj.weight: found K = 24"),
    "int": (np.ones((16, 32), np.int8), "up_proj.weight: found I8"),
    "f64": (np.ones((16, 32)), "up_proj.weight: found F64"),
}


@pytest.mark.parametrize("case", BAD_WEIGHTS)
def test_bad_weights_leave_nothing(tmp_path, case):
    w, words = BAD_WEIGHTS[case]
    with pytest.raises(NVFP4Error, match=words) as e:
        quantize_checkpoint(source(tmp_path, up_proj=w), tmp_path / "dst")
    assert "\n" not in str(e.value)
    assert not (tmp_path / "dst").exists()


def test_zero_weights(tmp_path):
    zero = np.zeros((16, 32), ml_dtypes.bfloat16)
    with pytest.raises(NVFP4Error, match="found only zeros"):
        quantize_checkpoint(source(tmp_path, up_proj=zero), tmp_path / "a", share_global_scales=False)
    # with a scale shared with gate_proj, zeros are representable
    quantize_checkpoint(source(tmp_path, up_proj=zero), tmp_path / "b")
    t = open_checkpoint(tmp_path / "b").nvfp4("model.layers.0.mlp.up_proj")
    assert not t.dequantize().any()


def test_routers_stay(tmp_path):
    summary = quantize_checkpoint(
        source(tmp_path, gate=np.ones((4, 32), ml_dtypes.bfloat16)), tmp_path / "dst"
    )
    assert "model.layers.0.mlp.gate" in summary.kept
    assert summary.layers == 2


def test_refusals(tmp_path, plain):
    quantize_checkpoint(plain, tmp_path / "q")
    cases = [
        (
            lambda: quantize_checkpoint(tmp_path / "q", tmp_path / "x"),
            CheckpointError,
            "expected an unquantized",
        ),
        (lambda: quantize_checkpoint(plain, tmp_path / "q"), CheckpointError, "expected an empty folder"),
        (lambda: quantize_checkpoint(plain, plain), CheckpointError, "expected an empty folder"),
        (lambda: quantize_checkpoint(plain, plain / "config.json"), CheckpointError, "a file"),
        (lambda: quantize_checkpoint(plain, tmp_path / "x", format="gguf"), NVFP4Error, "'gguf'"),
        (lambda: quantize_checkpoint(plain, tmp_path / "x", method="mse"), NVFP4Error, "'mse'"),
        (lambda: quantize_checkpoint(plain, tmp_path / "x", exclude=["*mlpp*"]), NVFP4Error, r"'\*mlpp\*'"),
        (
            lambda: quantize_checkpoint(plain, tmp_path / "x", exclude=["*"]),
            CheckpointError,
            "no linear layer",
        ),
        (
            lambda: quantize_checkpoint(tmp_path / "absent", tmp_path / "x"),
            CheckpointError,
            "expected a folder",
        ),
    ]
    for call, error, words in cases:
        with pytest.raises(error, match=words):
            call()
        assert not (tmp_path / "x").exists()


MEASURE = """
import resource, sys
from nvfp4_tvm.quantize import quantize_checkpoint
import nvfp4_tvm.checkpoint
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
summary = quantize_checkpoint(sys.argv[1], sys.argv[2], method=sys.argv[3])
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, summary.mb_per_s)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in kilobytes on Linux alone")
@pytest.mark.parametrize("method", ["amax"])
def test_memory_is_bounded_by_the_largest_tensor(tmp_path, method):
    """Twelve weights of 16 MiB: what quantizing adds to the process is far less than all of them."""
    rng = np.random.default_rng(0)
    w = (rng.standard_normal((2048, 4096), dtype=np.float32) * 0.02).astype(ml_dtypes.bfloat16)
    tensors = {f"model.layers.{i}.mlp.down_proj.weight": rc.raw(w) for i in range(12)}
    src = rc.write(tmp_path / "src", "none", tensors)
    out = subprocess.run(
        [sys.executable, "-c", MEASURE, str(src), str(tmp_path / "dst"), method],
        capture_output=True, text=True, check=True, env=os.environ,
    )  # fmt: skip
    before, after, speed = map(float, out.stdout.split())
    assert after - before < 3 * w.nbytes + (48 << 20) < 12 * w.nbytes / 1.5
    assert speed > 0
