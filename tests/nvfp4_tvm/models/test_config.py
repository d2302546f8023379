import dataclasses

import pytest
import transformers

from nvfp4_tvm.errors import NVFP4Error
from nvfp4_tvm.models.config import ARCHITECTURES, DecoderConfig

BASE = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}
CLASSES = {
    "llama": transformers.LlamaConfig,
    "mistral": transformers.MistralConfig,
    "qwen2": transformers.Qwen2Config,
    "qwen3": transformers.Qwen3Config,
}


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_defaults_are_those_of_transformers(model_type):
    """An empty config of each class, read from what the class says of itself."""
    hf = CLASSES[model_type]()
    config = DecoderConfig.from_hf(hf.to_dict())
    for key in (
        "hidden_size", "intermediate_size", "vocab_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "rms_norm_eps", "tie_word_embeddings",
    ):  # fmt: skip
        assert getattr(config, key) == getattr(hf, key), key
    assert config.head_dim == (getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads)
    assert config.qk_norm == (model_type == "qwen3")
    assert config.qkv_bias == (model_type == "qwen2") and not config.o_bias and not config.mlp_bias


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_parameters_are_those_of_transformers(model_type):
    """The biases and norms of the table are those that the class creates, with attention_bias set or not."""
    model_class = getattr(transformers, ARCHITECTURES[model_type].causal_lm)
    for bias in (False, True):
        settings = {k: v for k, v in BASE.items() if k not in ("model_type", "architectures", "rope_theta")}
        hf = CLASSES[model_type](**settings, head_dim=32, attention_bias=bias, mlp_bias=bias)
        names = set(dict(model_class(hf).named_parameters()))
        config = DecoderConfig.from_hf(hf.to_dict())
        layer = "model.layers.1"
        assert config.qkv_bias == (f"{layer}.self_attn.q_proj.bias" in names)
        assert config.qkv_bias == (f"{layer}.self_attn.v_proj.bias" in names)
        assert config.o_bias == (f"{layer}.self_attn.o_proj.bias" in names)
        assert config.mlp_bias == (f"{layer}.mlp.up_proj.bias" in names)
        assert config.mlp_bias == (f"{layer}.mlp.down_proj.bias" in names)
        assert config.qk_norm == (f"{layer}.self_attn.k_norm.weight" in names)


def test_old_and_new_rope_keys_agree():
    scaling = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    old = DecoderConfig.from_hf(
        {**BASE, "rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **scaling}}
    )
    older = DecoderConfig.from_hf({**BASE, "rope_theta": 5e5, "rope_scaling": {"type": "llama3", **scaling}})
    without = {k: v for k, v in BASE.items() if k != "rope_theta"}
    new = DecoderConfig.from_hf(
        {**without, "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **scaling}}
    )
    assert old == new == older
    assert old.rope != DecoderConfig.from_hf(BASE).rope


def test_derived_values():
    config = DecoderConfig.from_hf(
        {**BASE, "num_key_value_heads": None, "eos_token_id": [2, 3], "bos_token_id": 1}
    )
    assert config.head_dim == 32 and config.num_key_value_heads == 4
    assert config.eos_token_ids == (2, 3) and config.bos_token_id == 1
    assert DecoderConfig.from_hf({**BASE, "head_dim": 64}).head_dim == 64
    # what rope_theta and head_dim default to when a hand-written config leaves them out
    bare = {k: v for k, v in BASE.items() if k not in ("rope_theta", "architectures", "hidden_act")}
    assert DecoderConfig.from_hf(bare).rope == DecoderConfig.from_hf(BASE).rope
    assert DecoderConfig.from_hf({**bare, "model_type": "qwen3"}).head_dim == 128
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.head_dim = 1


def test_sliding_window_limits_the_context(caplog):
    mistral = {**BASE, "model_type": "mistral", "architectures": ["MistralForCausalLM"]}
    assert DecoderConfig.from_hf({**mistral, "sliding_window": None}).max_position_embeddings == 256
    assert DecoderConfig.from_hf({**mistral, "sliding_window": 4096}).max_position_embeddings == 256
    assert DecoderConfig.from_hf({**mistral, "max_position_embeddings": 8192}).max_position_embeddings == 4096
    assert "sliding_window: context limited to 4096 tokens" in caplog.text
    qwen = {**BASE, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "sliding_window": 64}
    assert DecoderConfig.from_hf(qwen).max_position_embeddings == 256
    on = {**qwen, "use_sliding_window": True}
    assert DecoderConfig.from_hf({**on, "max_window_layers": 2}).max_position_embeddings == 256
    assert DecoderConfig.from_hf({**on, "max_window_layers": 1}).max_position_embeddings == 64
    full, sliding = "full_attention", "sliding_attention"
    assert DecoderConfig.from_hf({**on, "layer_types": [full, full]}).max_position_embeddings == 256
    assert DecoderConfig.from_hf({**on, "layer_types": [full, sliding]}).max_position_embeddings == 64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gemma"}, "model_type is 'gemma', expected one of llama, mistral, qwen2, qwen3"),
        ({"model_type": None}, "model_type is None"),
        ({"model_type": ["llama"]}, r"model_type is \['llama'\]"),
        ({"architectures": ["LlamaForSequenceClassification"]}, r"expected \['LlamaForCausalLM'\]"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', expected 'silu'"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"vocab_size": "512"}, "vocab_size is '512', expected a positive integer"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_key_value_heads": 3}, r"num_key_value_heads is 3, expected a divisor of 4"),
        ({"head_dim": 33}, "head_dim is 33, expected an even number"),
        ({"hidden_size": 130}, "head_dim is missing"),
        ({"max_position_embeddings": -1}, "max_position_embeddings is -1"),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no'"),
        ({"attention_bias": 1}, "attention_bias is 1"),
        ({"eos_token_id": "</s>"}, "eos_token_id is '</s>'"),
        ({"rope_theta": -1.0}, "rope_theta is -1.0, expected a finite number above 1"),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear', expected an object"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type is 'dynamic', expected one of"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "rope_type is 'longrope'"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor is missing"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0}}, "rope_parameters.factor is 0"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8}}, "low_freq_factor is missing"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, expected 1"),
    ],
)  # fmt: skip
def test_refusals(change, message):
    with pytest.raises(NVFP4Error, match=message) as error:
        DecoderConfig.from_hf({**BASE, **change})
    assert "\n" not in str(error.value) and str(error.value).startswith("config: ")
