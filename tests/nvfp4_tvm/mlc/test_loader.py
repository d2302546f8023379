"""Loading checkpoints of the stand-in's model: exactly, one layer at a time, checked."""

import json
import shutil
import tracemalloc

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.numpy import load_file

from nvfp4_tvm import layout
from nvfp4_tvm.checkpoint import open_checkpoint
from nvfp4_tvm.errors import CheckpointError
from nvfp4_tvm.quantize import quantize_checkpoint

SOURCE = "huggingface-safetensor"
FORMATS = ["modelopt", "compressed_tensors"]
FIELDS = ("words", "scales", "global_scale")
PARTS = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


def load(mlc_llm, small, checkpoint, name="nvfp4_skel", config=None):
    """Run the conversion as far as the loader; return parameters, and the model that they are for."""
    import tvm

    quantization = mlc_llm.quantization.QUANTIZATION[name]
    config = config or small.config.from_file(checkpoint / "config.json")
    model, _ = small.quantize["nvfp4"](config, quantization)
    mapping = small.source[SOURCE](config, quantization)
    loader = mlc_llm.loader.LOADER["huggingface-safetensor"](
        path=checkpoint / "model.safetensors", extern_param_map=mapping
    )
    arrays = {name: value.numpy() for name, value in loader.load(device=tvm.cpu())}
    return arrays, dict(model.named_parameters()), loader


@pytest.mark.parametrize("form", FORMATS)
def test_all_parameters_of_the_model_and_no_others(mlc_llm, small, form, request):
    checkpoint = request.getfixturevalue(form)
    arrays, parameters, loader = load(mlc_llm, small, checkpoint)
    assert set(arrays) == set(parameters)
    for name, parameter in parameters.items():
        expected = [d if isinstance(d, int) else 512 for d in parameter.shape]  # 512: the symbolic vocabulary
        assert (list(arrays[name].shape), str(arrays[name].dtype)) == (expected, parameter.dtype), name
    plain = open_checkpoint(request.getfixturevalue("plain"))
    assert loader.stats.total_param_num == sum(plain.tensor(name).size for name in plain.names())
    assert "layers.0.o_proj.words" in arrays and "layers.1.o_proj.weight" in arrays


@pytest.mark.parametrize("form", FORMATS)
def test_fused_layers_keep_each_parts_global_scale(mlc_llm, small, form, request):
    checkpoint = request.getfixturevalue(form)
    arrays, *_ = load(mlc_llm, small, checkpoint)
    source = open_checkpoint(checkpoint)
    for name, parts in PARTS.items():
        tensors = [source.nvfp4(f"model.layers.1.{part}") for part in parts]
        assert len({float(t.global_scale) for t in tensors}) == len(parts)
        want = layout.concat([layout.pack(t.codes, t.scales, t.global_scale) for t in tensors])
        for field in ("words", "scales", "global_scale"):
            np.testing.assert_array_equal(arrays[f"layers.1.{name}.{field}"], getattr(want, field))


@pytest.mark.parametrize("form", FORMATS)
def test_experts_are_stacked(mlc_llm, small, form, request):
    checkpoint = request.getfixturevalue(form)
    arrays, *_ = load(mlc_llm, small, checkpoint)
    source = open_checkpoint(checkpoint)
    for expert in range(2):
        parts = (f"model.layers.0.experts.{expert}.{part}_proj" for part in ("gate", "up"))
        tensors = [source.nvfp4(part) for part in parts]
        want = layout.concat([layout.pack(t.codes, t.scales, t.global_scale) for t in tensors])
        for field in ("words", "scales", "global_scale"):
            np.testing.assert_array_equal(arrays[f"layers.0.experts.{field}"][expert], getattr(want, field))


def test_unquantized_parameters_are_as_they_were(mlc_llm, small, modelopt, plain):
    arrays, *_ = load(mlc_llm, small, modelopt)
    tensors = load_file(plain / "model.safetensors")
    for name in ("layers.1.o_proj.weight", "vision.weight", "layers.0.gate.weight", "layers.0.norm.weight"):
        np.testing.assert_array_equal(arrays[name], tensors[f"model.{name}"])
    bias = np.concatenate([tensors[f"model.layers.0.{part}.bias"] for part in PARTS["qkv_proj"]])
    np.testing.assert_array_equal(arrays["layers.0.qkv_proj.bias"], bias)
    np.testing.assert_array_equal(arrays["lm_head.weight"], tensors["lm_head.weight"])


def test_a_bfloat16_checkpoint_is_quantized_as_the_command_line_does(mlc_llm, small, plain, tmp_path):
    quantize_checkpoint(plain, tmp_path / "quantized")
    got, *_ = load(mlc_llm, small, plain)
    want, *_ = load(mlc_llm, small, tmp_path / "quantized")
    assert set(got) == set(want)
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array, err_msg=name)


def test_the_f16_entry_casts_what_stays_unquantized(mlc_llm, small, modelopt):
    arrays, *_ = load(mlc_llm, small, modelopt, "nvfp4_skel_f16")
    dtypes = {name.rpartition(".")[2]: str(array.dtype) for name, array in arrays.items()}
    assert dtypes["weight"] == dtypes["bias"] == "float16" and dtypes["global_scale"] == "float32"


def test_what_a_model_computes_of_a_norm_is_rounded_once(mlc_llm, small, modelopt):
    import tvm

    quantization = mlc_llm.quantization.QUANTIZATION["nvfp4_skel_f16"]
    config = small.config.from_file(modelopt / "config.json")
    mapping, name = small.source[SOURCE](config, quantization), "layers.0.norm.weight"
    mapping.map_func[name] = lambda x: (x + 1).astype("float16")  # as Gemma's
    loader = mlc_llm.loader.LOADER["huggingface-safetensor"](
        path=modelopt / "model.safetensors", extern_param_map=mapping
    )
    found = dict(loader.load(device=tvm.cpu()))[name].numpy()
    weight = open_checkpoint(modelopt).tensor(f"model.{name}")
    assert str(weight.dtype) == "bfloat16"
    np.testing.assert_array_equal(found, (1 + weight.astype(np.float64)).astype(np.float16))
    assert (found != (weight + 1).astype(np.float16)).any()


@pytest.mark.parametrize("quantized", [False, True])
def test_memory_holds_one_layer_at_a_time(mlc_llm, small, tall, quantized):
    import tvm

    checkpoint = tall[quantized]
    quantization = mlc_llm.quantization.QUANTIZATION["nvfp4_skel"]
    config = small.config.from_file(checkpoint / "config.json")
    mapping = small.source[SOURCE](config, quantization)
    loader = mlc_llm.loader.LOADER[SOURCE](path=checkpoint / "model.safetensors", extern_param_map=mapping)
    largest = 2 * 1024 * 128  # gate_up_proj in bfloat16
    for _ in loader.load(device=tvm.cpu()):  # compiles the kernels
        pass
    tracemalloc.start()
    try:
        total = sum(value.numpy().nbytes for _, value in loader.load(device=tvm.cpu()))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    small_change = 2**16  # names, shapes, generators
    assert peak < 3 * largest + small_change < total / 3


def changed(checkpoint, folder, change):
    """A copy of a checkpoint with other tensors."""
    shutil.copytree(checkpoint, folder)
    tensors = safetensors.torch.load_file(checkpoint / "model.safetensors")
    change(tensors)
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    return folder


def test_checks_of_the_checkpoint_readers_apply(mlc_llm, small, modelopt, tmp_path):
    def damage(tensors):
        tensors["model.layers.0.k_proj.weight_scale"].view(torch.uint8)[3, 2] = 0x7F

    with pytest.raises(CheckpointError, match=r"layers.0.k_proj.*NaN.*row 3, group 2"):
        load(mlc_llm, small, changed(modelopt, tmp_path / "c", damage))


def test_a_missing_tensor_is_named(mlc_llm, small, modelopt, tmp_path):
    def remove(tensors):
        del tensors["model.layers.0.norm.weight"]

    with pytest.raises(CheckpointError, match=r"model.layers.0.norm.weight: found no such tensor"):
        load(mlc_llm, small, changed(modelopt, tmp_path / "c", remove))


def test_values_that_overflow_float16_are_refused(mlc_llm, small, plain, tmp_path):
    def enlarge(tensors):
        tensors["model.layers.0.norm.weight"][5] = 1e30

    folder = changed(plain, tmp_path / "c", enlarge)
    load(mlc_llm, small, folder)
    with pytest.raises(CheckpointError, match=r"layers.0.norm.weight: found values .* in float16"):
        load(mlc_llm, small, folder, "nvfp4_skel_f16")


def test_a_config_of_another_checkpoint_is_refused(mlc_llm, small, plain, modelopt, tmp_path):
    config = small.config.from_file(plain / "config.json")
    with pytest.raises(CheckpointError, match=r"layers.1.o_proj is plain, expected nvfp4"):
        load(mlc_llm, small, modelopt, config=config)


def test_a_fused_layer_with_parts_in_two_formats_is_refused(mlc_llm, small, plain, tmp_path):
    quantize_checkpoint(plain, tmp_path / "c", exclude=["*.layers.0.k_proj"])
    with pytest.raises(
        CheckpointError, match=r"layer layers.0.qkv_proj: found model.layers.0.k_proj unquantized"
    ):
        load(mlc_llm, small, tmp_path / "c")


def test_an_nvfp4_layer_that_the_model_computes_unquantized_is_refused(mlc_llm, small, modelopt, tmp_path):
    def quantize_gate(tensors):
        for suffix in ("weight", "weight_scale", "weight_scale_2"):
            tensor = tensors[f"model.layers.0.q_proj.{suffix}"]
            tensors[f"model.vision.{suffix}"] = tensor.clone()

    folder = changed(modelopt, tmp_path / "c", quantize_gate)
    for file, key in (("hf_quant_config.json", "quantization"), ("config.json", "quantization_config")):
        if (folder / file).is_file():
            content = json.loads((folder / file).read_text())
            for excluded in ("exclude_modules", "ignore"):
                if excluded in content[key]:
                    content[key][excluded].remove("model.vision")
            (folder / file).write_text(json.dumps(content))
    with pytest.raises(
        CheckpointError, match=r"layer vision: found NVFP4 weights, expected unquantized ones"
    ):
        load(mlc_llm, small, folder)


def test_other_quantizations_get_mlc_llms_loader(mlc_llm, small, plain):
    quantization = mlc_llm.quantization.QUANTIZATION["q0bf16"]
    mapping = small.source[SOURCE](small.config(), quantization)
    loader = mlc_llm.loader.LOADER["huggingface-safetensor"](
        path=plain, extern_param_map=mapping, quantize_param_map=None
    )
    assert type(loader) is mlc_llm.loader.HuggingFaceLoader
    assert "layers.0.qkv_proj.weight" in mapping.param_map


def test_weights_that_mlc_llm_loads_itself_are_quantized_by_the_mapping(mlc_llm, small, plain):
    import tvm

    quantization = mlc_llm.quantization.QUANTIZATION["nvfp4_skel"]
    _, quant_map = small.quantize["nvfp4"](small.config(), quantization)
    weight = load_file(plain / "model.safetensors")["model.layers.0.down_proj.weight"]
    names, function = (
        field["layers.0.down_proj.weight"] for field in (quant_map.param_map, quant_map.map_func)
    )
    values = dict(zip(names, function(tvm.runtime.tensor(weight)), strict=True))
    arrays, *_ = load(mlc_llm, small, plain)
    for name, value in values.items():
        np.testing.assert_array_equal(value.numpy(), arrays[name])


def test_layers_that_a_model_does_not_fuse_share_a_global_scale_all_the_same(mlc_llm, plain, tmp_path):
    """As in the checkpoint's quantized copy, which any other model may read."""
    import tvm

    from nvfp4_tvm.mlc.loader import PackedLoader, packed_mapping

    modules = [f"model.layers.0.{part}_proj" for part in "qkv"]
    mapping = mlc_llm.loader.ExternMapping(
        {f"{module}.weight": [f"{module}.weight"] for module in modules},
        {f"{module}.weight": lambda weight: weight for module in modules},
    )
    fields = {f"{module}.weight": [f"{module}.{field}" for field in FIELDS] for module in modules}
    loader = PackedLoader(plain, packed_mapping(mapping, fields))
    arrays = {name: value.numpy() for name, value in loader.load(device=tvm.cpu())}
    quantize_checkpoint(plain, tmp_path / "quantized")
    source = open_checkpoint(tmp_path / "quantized")
    assert len({float(source.nvfp4(m).global_scale) for m in modules}) == 1
    for module in modules:
        tensor = source.nvfp4(module)
        want = layout.pack(tensor.codes, tensor.scales, tensor.global_scale)
        for field in FIELDS:
            np.testing.assert_array_equal(arrays[f"{module}.{field}"], getattr(want, field))
