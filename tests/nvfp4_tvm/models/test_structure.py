import dataclasses

from nvfp4_tvm.models import DecoderConfig
from nvfp4_tvm.models.structure import embedding_spec, head_spec, layer_spec, norms, nothing_quantized

CONFIG = DecoderConfig.from_hf(
    {
        "model_type": "qwen3", "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 48, "vocab_size": 512,
        "max_position_embeddings": 256, "attention_bias": True,
    }
)  # fmt: skip


def everything(_module):
    return True


def test_fused_when_all_parts_agree():
    for quantized in (nothing_quantized, everything):
        spec = layer_spec(CONFIG, 1, quantized)
        (qkv,), (gate_up,) = spec.qkv, spec.gate_up
        attention = "model.layers.1.self_attn"
        assert qkv.name == f"{attention}.qkv_proj" and qkv.attribute == "qkv_proj"
        assert qkv.parts == (
            (f"{attention}.q_proj", 192),
            (f"{attention}.k_proj", 96),
            (f"{attention}.v_proj", 96),
        )
        assert (qkv.N, qkv.K, qkv.bias, qkv.quantized) == (384, 128, True, quantized("q"))
        assert (gate_up.N, gate_up.K, gate_up.bias) == (512, 128, False)
        assert (spec.o.N, spec.o.K, spec.o.bias) == (128, 192, True)
        assert (spec.down.N, spec.down.K) == (128, 256)


def test_separate_when_parts_differ():
    spec = layer_spec(CONFIG, 0, lambda module: module.endswith(("k_proj", "up_proj", "down_proj")))
    assert [(part.attribute, part.N, part.quantized, part.bias) for part in spec.qkv] == [
        ("q_proj", 192, False, True), ("k_proj", 96, True, True), ("v_proj", 96, False, True),
    ]  # fmt: skip
    assert [(part.attribute, part.quantized) for part in spec.gate_up] == [
        ("gate_proj", False),
        ("up_proj", True),
    ]
    assert not spec.o.quantized and spec.down.quantized
    assert len(spec.linears) == 7


def test_head():
    assert head_spec(CONFIG, nothing_quantized).parts == (("lm_head", 512),)
    tied = dataclasses.replace(CONFIG, tie_word_embeddings=True)
    assert head_spec(tied, nothing_quantized) is None
    assert head_spec(tied, lambda module: module == "model.embed_tokens") is None
    own = head_spec(tied, lambda module: module == "lm_head")
    assert own is not None and own.quantized
    assert (
        embedding_spec(tied, everything).quantized and not embedding_spec(tied, nothing_quantized).quantized
    )


def test_norms():
    found = dict(norms(CONFIG))
    assert len(found) == 9 and found["model.layers.1.self_attn.k_norm"] == 48 and found["model.norm"] == 128
    assert len(dict(norms(dataclasses.replace(CONFIG, qk_norm=False)))) == 5
