import benchmark_modules  # noqa: F401
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.mlc_libraries import SHAPES
from benchmarks.mlc_reference import Reference
from benchmarks.mlc_weights import Weights

SHAPE = vars(SHAPES["tiny"])
HIDDEN, INNER, DIM = (SHAPE[key] for key in ("hidden_size", "intermediate_size", "head_dim"))
HEADS, GROUPS = SHAPE["num_attention_heads"], SHAPE["num_key_value_heads"]


def parameters():
    """Names and shapes as MLC's Llama has them, unquantized."""
    shapes = {"lm_head.weight": ["vocab_size", HIDDEN], "model.norm.weight": [HIDDEN]}
    for layer in range(SHAPE["num_hidden_layers"]):
        name = f"model.layers.{layer}"
        shapes[f"{name}.self_attn.qkv_proj.weight"] = [(HEADS + 2 * GROUPS) * DIM, HIDDEN]
        shapes[f"{name}.self_attn.o_proj.weight"] = [HIDDEN, HEADS * DIM]
        shapes[f"{name}.mlp.gate_up_proj.weight"] = [2 * INNER, HIDDEN]
        shapes[f"{name}.mlp.down_proj.weight"] = [HIDDEN, INNER]
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{name}.{norm}.weight"] = [HIDDEN]
    return [{"name": name, "shape": shape, "dtype": "float32"} for name, shape in shapes.items()]


def test_logits_are_those_of_transformers():
    weights = Weights(parameters(), {"vocab_size": SHAPE["vocab_size"]}, "cpu")
    config = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=SHAPE["num_hidden_layers"],
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        head_dim=DIM,
        vocab_size=SHAPE["vocab_size"],
        rms_norm_eps=SHAPE["rms_norm_eps"],
        rope_parameters={"rope_theta": float(SHAPE["position_embedding_base"]), "rope_type": "default"},
        tie_word_embeddings=False,
    )
    model, state = LlamaForCausalLM(config).float(), {}
    for param in parameters():
        name, value = param["name"], weights.plain(param["name"])
        if "qkv_proj" in name:
            parts = value.split((HEADS * DIM, GROUPS * DIM, GROUPS * DIM))
            state.update({name.replace("qkv", part): rows for part, rows in zip("qkv", parts, strict=True)})
        elif "gate_up" in name:
            state.update(
                {name.replace("gate_up", p): v for p, v in zip(("gate", "up"), value.chunk(2), strict=True)}
            )
        else:
            state[name] = value
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert missing == ["model.embed_tokens.weight"] and not unexpected
    x = torch.randn(7, HIDDEN, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(inputs_embeds=x[None]).logits[0]
    found = Reference(weights, SHAPE).logits(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
