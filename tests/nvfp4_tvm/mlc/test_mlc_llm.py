"""MLC-LLM itself, where it is: `MLC_LLM_SOURCE` and `MLC_LLM_SHIM` (tests/helpers/mlc_llm_model.py) say where."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import benchmark_modules  # noqa: F401
import mlc_llm_model
import numpy as np
import pytest
import safetensors.torch
import torch
import tvm
from make_checkpoints import make_compressed_tensors, make_modelopt, make_plain
from mlc_llm_model import CompiledModel, configure, convert, missing, mlc_llm, read_parameters, run_python
from reference import clear_steps, cosine, reference_model
from tvm import relax

from benchmarks import verify_mlc
from nvfp4_tvm import layout
from nvfp4_tvm.checkpoint import open_checkpoint
from nvfp4_tvm.numerics import dequantize, quantize
from nvfp4_tvm.quantize import quantize_checkpoint

pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=str(missing())),
    pytest.mark.slow,
    pytest.mark.timeout(1800),
]
MODELS = Path(mlc_llm_model.__file__).with_name("mlc_llm_models.py")
FIELDS = ("words", "scales", "global_scale")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A Llama with q, k, v of different global scales, o_proj of one layer unquantized."""
    folder = tmp_path_factory.mktemp("checkpoint")
    ignore = ("lm_head", "model.layers.1.self_attn.o_proj")
    config = {"hidden_size": 256, "head_dim": 64}  # two shards of K = 128
    return make_compressed_tensors(folder, arch="llama", ignore=ignore, config=config)


@pytest.fixture(scope="module")
def converted(checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    configure(checkpoint, out, "nvfp4_skel")
    convert(checkpoint, out, "nvfp4_skel")
    return out


@pytest.mark.parametrize("command", ["gen_config", "convert_weight", "compile"])
def test_commands_list_the_quantizations(command):
    shown = mlc_llm(command, "--help").stdout
    assert "nvfp4_skel" in shown and "nvfp4_skel_f16" in shown


def test_the_hook_can_be_switched_off():
    assert "nvfp4_skel" not in mlc_llm("compile", "--help", env={"NVFP4_TVM_MLC": "0"}).stdout


def test_just_in_time_compilation_activates_the_plug_in_in_its_child(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mlc_llm", "compile", "--help"],
        env={**os.environ, **mlc_llm_model.child_environment(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert "nvfp4_skel" in done.stdout, done.stderr


def test_packaging_for_phones_says_what_is_supported(converted, tmp_path):
    """`package` compiles just in time, for Metal here; it knows no device that has these kernels."""
    entry = {"model": str(converted), "model_id": "x", "bundle_weight": True, "estimated_vram_bytes": 1}
    config = tmp_path / "mlc-package-config.json"
    config.write_text(json.dumps({"device": "iphone", "model_list": [entry]}))
    done = mlc_llm(
        "package", "--package-config", config, "--mlc-llm-source-dir", mlc_llm_model.SOURCE, "-o",
        tmp_path / "out", env=mlc_llm_model.child_environment(tmp_path), check=False,
    )  # fmt: skip
    said = "target metal: no NVFP4 kernels; supported are cuda (sm_80, sm_86, sm_89, sm_90), llvm"
    assert said in done.stdout + done.stderr and done.returncode


def test_every_model_that_supports_group_quantization():
    rows = json.loads(run_python(MODELS.read_text()).split("RESULT ")[1])
    assert {"llama", "qwen3", "gemma3_text", "phi3", "mixtral", "qwen3_moe"} <= set(rows)
    checked = 0
    for name, row in rows.items():
        if "skipped" in row:
            assert row["registered"] == (row["skipped"] == "no preset"), name
        elif "error" in row:  # of MLC-LLM's model, on this TVM
            assert row["with q4f16_1"] is not None, (name, row["error"])
        else:
            assert row["packed"] and not row["unmapped"] and not row["unknown"], name
            checked += 1
    assert checked >= 20


def test_the_configuration_records_what_is_unquantized(checkpoint, converted):
    record = json.loads((converted / "mlc-chat-config.json").read_text())["model_config"]["nvfp4"]
    assert set(record["unquantized"]) == {"lm_head", "model.embed_tokens", "model.layers.1.self_attn.o_proj"}


def test_just_in_time_compilation_tells_models_with_other_records_apart(converted, tmp_path):
    other = shutil.copytree(converted, tmp_path / "other")
    config = json.loads((other / "mlc-chat-config.json").read_text())
    config["model_config"]["nvfp4"]["unquantized"].append("model.layers.0.mlp.down_proj")
    (other / "mlc-chat-config.json").write_text(json.dumps(config))
    shown = run_python(
        """
import sys
from pathlib import Path
from mlc_llm.interface import jit
jit.subprocess.run = lambda command, **_: Path(command[command.index("--output") + 1]).touch()
home = jit.MLC_LLM_HOME = Path(sys.argv[1])
(home / "model_lib").mkdir()
for folder in sys.argv[2:]:
    print("RESULT", jit.jit(Path(folder), {}, "cpu").model_lib_path)
""",
        str(tmp_path), str(converted), str(converted), str(other),
    )  # fmt: skip
    first, again, third = (line for line in shown.splitlines() if line.startswith("RESULT"))
    assert first == again != third


def test_parameters_on_disk_are_the_packed_checkpoint(checkpoint, converted):
    parameters, source = read_parameters(converted), open_checkpoint(checkpoint)
    attention = "model.layers.0.self_attn"
    tensors = [source.nvfp4(f"{attention}.{part}_proj") for part in "qkv"]
    assert len({float(tensor.global_scale) for tensor in tensors}) == 3
    want = layout.concat([layout.pack(t.codes, t.scales, t.global_scale) for t in tensors])
    for field in FIELDS:
        np.testing.assert_array_equal(parameters[f"{attention}.qkv_proj.{field}"], getattr(want, field))
    assert "model.layers.1.self_attn.o_proj.weight" in parameters
    rows = sum(array.size for name, array in parameters.items() if name.endswith("global_scale"))
    stored = sum(source.tensor_info(name).nbytes for name in source.names())
    assert sum(array.nbytes for array in parameters.values()) <= stored + 4 * rows


def test_shards_made_while_converting_are_the_shards_of_the_packing(checkpoint, converted, tmp_path):
    convert(checkpoint, tmp_path, "nvfp4_skel", env={"MLC_INTERNAL_PRESHARD_NUM": "2"})
    shards, whole = read_parameters(tmp_path), read_parameters(converted)
    heads, intermediate = 64, 256
    q = 4 * heads
    splits = {  # rows or columns of the unpacked weight that shard 0 has
        "self_attn.qkv_proj": (0, [(0, q // 2), (q, q + heads), (q + 2 * heads, q + 3 * heads)]),
        "mlp.gate_up_proj": (0, [(0, intermediate // 2), (intermediate, intermediate * 3 // 2)]),
        "mlp.down_proj": (1, [(0, intermediate // 2)]),
    }
    for layer, (dim, ranges) in splits.items():
        name = f"model.layers.0.{layer}"
        for field in FIELDS:
            array = whole[f"{name}.{field}"]
            if dim == 1 and field == "global_scale":
                np.testing.assert_array_equal(shards[f"{name}.{field}"], array)
                continue
            unit = (1 if field == "global_scale" else layout.TILE_N) if dim == 0 else layout.TILE_K
            own = [np.arange(begin // unit, end // unit) for begin, end in ranges]
            first = np.take(array, np.concatenate(own), axis=dim)
            np.testing.assert_array_equal(shards[f"{name}.{field}_shard-0"], first)
            rest = np.concatenate([indices + len(indices) for indices in own])
            np.testing.assert_array_equal(shards[f"{name}.{field}_shard-1"], np.take(array, rest, axis=dim))


def test_a_library_shards_at_load_as_converting_does(checkpoint, converted, tmp_path):
    """By the functions that MLC-LLM's runtime is told to call for each parameter."""
    folder = shutil.copytree(converted, tmp_path / "whole")
    library = mlc_llm_model.compile(folder, "--overrides", "tensor_parallel_shards=2")
    convert(checkpoint, tmp_path / "shards", "nvfp4_skel", env={"MLC_INTERNAL_PRESHARD_NUM": "2"})
    whole, shards, checked = read_parameters(converted), read_parameters(tmp_path / "shards"), 0
    module = tvm.runtime.load_module(str(library))
    machine = relax.VirtualMachine(module, tvm.cpu())
    for parameter in json.loads(machine["_metadata"]())["params"]:
        name = parameter["name"]
        if not parameter["preprocs"]:
            np.testing.assert_array_equal(shards[name], whole[name])
            continue
        (step,) = parameter["preprocs"]
        out = tvm.runtime.empty(step["out_shape"], step["out_dtype"], tvm.cpu())
        assert list(whole[name].shape) == step["in_shape"]
        module.get_function(step["func_name"], query_imports=True)(tvm.runtime.tensor(whole[name]), out)
        for shard, part in enumerate(out.numpy()):
            assert list(part.shape) == parameter["shape"]
            np.testing.assert_array_equal(part, shards[f"{name}_shard-{shard}"])
        checked += 1
    assert checked >= 2 * 8


def test_checkpoints_of_pytorch_s_own_format(tmp_path):
    plain = make_plain(tmp_path / "plain", arch="llama")
    pytorch = tmp_path / "pytorch"
    pytorch.mkdir()
    shutil.copyfile(plain / "config.json", pytorch / "config.json")
    torch.save(safetensors.torch.load_file(plain / "model.safetensors"), pytorch / "pytorch_model.bin")
    for folder in (plain, pytorch):
        configure(folder, tmp_path / f"out-{folder.name}", "nvfp4_skel")
        options = ["--source-format", "huggingface-torch"] if folder is pytorch else []
        mlc_llm(
            "convert_weight", folder, "--quantization", "nvfp4_skel", "--device", "cpu", *options,
            "-o", tmp_path / f"out-{folder.name}",
        )  # fmt: skip
    want, got = (read_parameters(tmp_path / f"out-{folder.name}") for folder in (plain, pytorch))
    assert set(got) == set(want)
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array, err_msg=name)


def test_an_indivisible_shape_is_refused(tmp_path):
    folder = make_modelopt(tmp_path / "c", arch="llama")  # o_proj has K = 128
    done = mlc_llm(
        "convert_weight", folder, "--quantization", "nvfp4_skel", "--device", "cpu", "-o", tmp_path / "out",
        env={"MLC_INTERNAL_PRESHARD_NUM": "2"}, check=False,
    )  # fmt: skip
    assert "self_attn.o_proj: K of 128 does not split into tensor_parallel_shards=2" in done.stderr
    assert "expected tensor_parallel_shards of 1" in done.stderr


def test_a_compiled_model_computes_what_transformers_does(checkpoint, converted):
    library = mlc_llm_model.compile(converted)
    model = CompiledModel(library, read_parameters(converted))
    prompt, tokens, expected = clear_steps(reference_model(checkpoint), 33, 9)
    for batch in (False, True):
        got = model.steps(prompt, tokens[:-1], batch=batch)
        assert cosine(got, expected).min() > 0.9999
        assert got.argmax(-1).tolist() == tokens


@pytest.mark.parametrize("tie", [False, True], ids=["head", "tied"])
def test_a_quantized_head_and_embedding_compute_what_they_stand_for(tie, tmp_path):
    plain = make_plain(tmp_path / "plain", arch="llama", tie=tie)
    verify_mlc.old_spelling(plain / "config.json")
    quantize_checkpoint(plain, tmp_path / "quantized")
    reference, source = reference_model(tmp_path / "quantized"), open_checkpoint(plain)
    for name in ["model.embed_tokens", *([] if tie else ["lm_head"])]:
        exact = dequantize(*quantize(source.tensor(f"{name}.weight")), np.float32)
        reference.get_submodule(name).weight.data = torch.from_numpy(exact)
    reference.tie_weights()
    out = tmp_path / "out"
    configure(plain, out, "nvfp4_skel_full_f16")
    convert(plain, out, "nvfp4_skel_full_f16")
    parameters = read_parameters(out)
    assert not [name for name, array in parameters.items() if name.endswith(".weight") and array.ndim > 1]
    prompt, tokens, expected = clear_steps(reference, 33, 9)
    got = CompiledModel(mlc_llm_model.compile(out), parameters).steps(prompt, tokens[:-1])
    assert cosine(got, expected).min() > 0.9999
    assert got.argmax(-1).tolist() == tokens


@pytest.mark.parametrize("model", verify_mlc.EXPERTS)
def test_experts_of_every_format_compute_what_transformers_do(model, tmp_path):
    rows = list(verify_mlc.verify(tmp_path, model, ("nvfp4_skel_f16",)))
    assert {row["format"] for row in rows} == set(verify_mlc.FORMATS)
    for row in rows:
        assert min(row["cosine_prefill"], row["cosine_decode_min"]) >= 0.9999, row
        assert row["greedy_equal"] == row["steps"] + 1, row


@pytest.mark.parametrize("quantization", verify_mlc.QUANTIZATIONS)
def test_a_mixture_that_is_nvfp4_compiles_for_cuda(quantization, tmp_path):
    """Its layers are recorded, so that `compile` asks the model's loader, with CUTLASS turned on."""
    checkpoint, _ = verify_mlc.make_checkpoint(tmp_path, "mixtral", "modelopt")
    library = verify_mlc.build(checkpoint, tmp_path / "out", quantization, {}, True, "sm_90")
    assert b"nvfp4_grouped_" in library.read_bytes()
