"""Which layers of the stand-in's model become NVFP4."""

import pytest

from nvfp4_tvm import layout
from nvfp4_tvm.errors import ShapeError
from nvfp4_tvm.mlc.quantization import NVFP4Quantize

DEFAULT = {"qkv_proj", "o_proj", "gate_up_proj", "down_proj", "experts"}


def quantized(small, quantization, config=None):
    """Names of the NVFP4 layers, without the number of the block; the model; the mapping."""
    from nvfp4_tvm.mlc.linear import NVFP4Weight

    model, quant_map = small.quantize["nvfp4"](config or small.config(), quantization)
    names = {name.removesuffix(".words") for name, _ in model.named_parameters() if name.endswith(".words")}
    assert {name.removesuffix(".weight") for name in quant_map.param_map} == names
    for fields in quant_map.param_map.values():
        assert set(fields) <= {name for name, _ in model.named_parameters()}
    assert isinstance(model.layers[0].o_proj, NVFP4Weight)
    return {name.rpartition(".")[2] for name in names}, model


@pytest.mark.parametrize(
    ("options", "more"),
    [
        ({}, set()),
        ({"quantize_final_fc": True}, {"lm_head"}),
        ({"quantize_embedding": True}, {"embed_tokens"}),
        ({"quantize_embedding": True, "quantize_final_fc": True}, {"embed_tokens", "lm_head"}),
    ],
)
def test_options_and_what_stays_unquantized(mlc_llm, small, options, more):
    names, model = quantized(small, NVFP4Quantize("x", "nvfp4", "bfloat16", **options))
    assert names == DEFAULT | more  # neither gates nor what has no_quantization
    if "lm_head" in more:
        assert tuple(model.lm_head.words.shape) == layout.words_shape(512, 128)


def test_the_entries_are_there(mlc_llm, small):
    for name in ("nvfp4_skel", "nvfp4_skel_f16"):
        entry = mlc_llm.quantization.QUANTIZATION[name]
        names, model = quantized(small, entry)
        assert names == DEFAULT
        assert model.layers[0].qkv_proj.bias.dtype == model.dtype == entry.model_dtype


@pytest.mark.parametrize("form", ["modelopt", "compressed_tensors"])
def test_an_nvfp4_checkpoint_decides_for_itself(mlc_llm, small, form, request):
    config = small.config.from_file(request.getfixturevalue(form) / "config.json")
    everything = NVFP4Quantize("x", "nvfp4", "bfloat16", quantize_embedding=True, quantize_final_fc=True)
    names, model = quantized(small, everything, config)
    assert names == DEFAULT
    assert hasattr(model.layers[1].o_proj, "weight") and hasattr(model.layers[0].o_proj, "words")


@pytest.mark.parametrize("shards", [1, 2])
def test_layers_have_the_shapes_of_a_shard(mlc_llm, small, shards):
    config = small.config(tensor_parallel_shards=shards, num_attention_heads=8)
    _, model = quantized(small, mlc_llm.quantization.QUANTIZATION["nvfp4_skel"], config)
    layer = model.layers[0]
    assert tuple(layer.qkv_proj.words.shape) == layout.words_shape(384 // shards, 128)
    assert tuple(layer.down_proj.words.shape) == layout.words_shape(128, 512 // shards)


def test_a_shard_of_part_of_a_tile_is_refused(mlc_llm, small):
    config = small.config(intermediate_size=384, tensor_parallel_shards=2, num_attention_heads=8)
    with pytest.raises(
        ShapeError, match=r"layer layers.0.down_proj: K of 384 .*=2.* of whole tiles of 128; expected"
    ):
        small.quantize["nvfp4"](config, mlc_llm.quantization.QUANTIZATION["nvfp4_skel"])


def test_a_symbolic_extent_must_be_in_the_configuration(mlc_llm, small):
    config = small.config()
    del config.vocab_size  # the class has the default
    type(config).vocab_size, saved = None, type(config).vocab_size
    try:
        quantization = NVFP4Quantize("x", "nvfp4", "bfloat16", quantize_final_fc=True)
        with pytest.raises(ShapeError, match="layer lm_head: found the symbolic extent vocab_size"):
            small.quantize["nvfp4"](config, quantization)
    finally:
        type(config).vocab_size = saved
