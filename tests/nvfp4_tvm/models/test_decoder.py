"""Decoders against transformers in float32; built by TVM's own pipelines, once a case."""

from dataclasses import dataclass

import numpy as np
import pytest
import tvm
from make_checkpoints import make_compressed_tensors, make_modelopt, make_plain
from plain_build import LLVM, Build, plain_build
from reference import cosine, reference_logits, reference_model, reference_steps
from tvm.runtime import ShapeTuple

from nvfp4_tvm.errors import NVFP4Error
from nvfp4_tvm.models import DecoderConfig, export
from nvfp4_tvm.models.kv_cache import PAGE_SIZE

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}


def plain(**options):
    return lambda folder: make_plain(folder, dtype="float32", **options)


CASES = {
    "llama": plain(arch="llama"),
    "llama-3.1-rope-biases-wide-heads": plain(
        arch="llama",
        config={"rope_parameters": LLAMA3, "attention_bias": True, "mlp_bias": True, "head_dim": 64},
    ),
    "llama-no-grouped-queries-yarn": plain(
        arch="llama", config={"num_key_value_heads": 4, "rope_parameters": {**YARN, "truncate": False}}
    ),
    "mistral-window": plain(
        arch="mistral", config={"sliding_window": 128, "head_dim": None, "num_key_value_heads": 1}
    ),
    "qwen2-tied-linear-rope": plain(arch="qwen2", tie=True, config={"rope_parameters": LINEAR}),
    "qwen3-yarn": plain(arch="qwen3", config={"rope_parameters": YARN}),
    "nvfp4-modelopt-llama-excluded": lambda folder: make_modelopt(
        folder, arch="llama", exclude=("*layers.0*k_proj", "*layers.1*up_proj")
    ),
    "nvfp4-compressed-tensors-qwen2-tied": lambda folder: make_compressed_tensors(
        folder, arch="qwen2", tie=True
    ),
}


@dataclass
class Case:
    name: str
    build: Build
    model: object
    prompt: list


@pytest.fixture(scope="module", params=list(CASES))
def case(request, tmp_path_factory):
    folder = CASES[request.param](tmp_path_factory.mktemp("decoder"))
    rng = np.random.default_rng(len(request.param))
    return Case(
        request.param, plain_build(folder), reference_model(folder), rng.integers(0, 512, 77).tolist()
    )


def test_scores_of_a_prompt_in_chunks(case):
    expected = reference_logits(case.model, case.prompt)
    for chunk in (128, 33):  # at once, and in three pieces of which the last is short
        logits = case.build.runner(chunk=chunk).logits(case.prompt)
        assert logits.dtype == np.float32 and logits.shape == expected.shape
        assert cosine(logits, expected).min() >= 0.99999
        np.testing.assert_allclose(logits, expected, atol=3e-5 * np.abs(expected).max())


def test_sixteen_steps_of_decoding(case):
    tokens, expected = reference_steps(case.model, case.prompt, 16)
    runner = case.build.runner(chunk=40)
    steps = [runner.prefill(case.prompt)]
    for token in tokens[:-1]:
        steps.append(runner.decode(token))
    assert cosine(np.stack(steps), expected).min() >= 0.99999
    assert [int(step.argmax()) for step in steps] == tokens
    assert list(runner.generate(case.prompt, 16).token_ids) == tokens


def test_decoding_two_sequences_together(case):
    runner = case.build.runner()
    vm, params = runner._vm, runner._params
    state = {
        name: tvm.get_global_func(f"vm.builtin.kv_state_{name}")
        for name in ("add_sequence", "begin_forward", "end_forward")
    }
    cache = vm["create_paged_kv_cache"](*(ShapeTuple([n]) for n in (2, 256, 64, PAGE_SIZE, 0)))
    texts = [case.prompt[:21], case.prompt[21:60]]
    for i, text in enumerate(texts):
        state["add_sequence"](cache, i)
        state["begin_forward"](cache, ShapeTuple([i]), ShapeTuple([len(text)]))
        vm["prefill"](tvm.runtime.tensor(np.array([text], np.int32)), cache, *params)
        state["end_forward"](cache)
    for step in range(3):
        new = [[7 + step], [400 - step]]
        state["begin_forward"](cache, ShapeTuple([0, 1]), ShapeTuple([1, 1]))
        logits = vm["decode"](tvm.runtime.tensor(np.array(new, np.int32)), cache, *params).numpy()
        state["end_forward"](cache)
        assert logits.shape == (2, 1, 512)
        for i in range(2):
            texts[i] = texts[i] + new[i]
            expected = reference_logits(case.model, texts[i])[-1]
            assert cosine(logits[i, 0], expected) >= 0.99999


@pytest.mark.parametrize(("dtype", "head_dim", "bound"), [("float16", 64, 1e-5), ("bfloat16", 128, 1e-3)])
def test_16_bit_models(dtype, head_dim, bound, tmp_path):
    """1 - cosine is about the square of the relative error: 2**-11 and 2**-8 of a few dozen roundings."""
    folder = make_plain(tmp_path, arch="qwen3", dtype=dtype, config={"head_dim": head_dim})
    runner = plain_build(folder, dtype=dtype).runner(chunk=16)
    ids = np.random.default_rng(3).integers(0, 512, 40).tolist()
    expected = reference_logits(reference_model(folder), ids)
    assert (1 - cosine(runner.logits(ids), expected)).max() <= bound


def small_config(**change):
    return DecoderConfig.from_hf(
        {
            "model_type": "llama", "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512,
            "max_position_embeddings": 256, **change,
        }
    )  # fmt: skip


def test_exported_functions():
    exported = export(small_config(), dtype="bfloat16", target=LLVM, prefill_chunk_size=32, max_batch_size=2)
    functions = {name: exported.mod[name] for name in ("prefill", "score", "decode", "create_paged_kv_cache")}
    names = list(exported.params)
    for name in ("prefill", "score", "decode"):
        function = functions[name]
        assert int(function.attrs["num_input"]) == 2
        assert [var.name for var in function.params[2:]] == names
        bounds = function.attrs["tir_var_upper_bound"]
        assert {key: int(value) for key, value in bounds.items()} == {"seq_len": 32, "batch_size": 2}
        assert function.ret_ty.dtype == "float32" and int(function.ret_ty.shape[2]) == 512
    assert names[0] == "model.embed_tokens.weight" and names[-1] == "lm_head.weight"
    assert exported.params["model.layers.0.self_attn.qkv_proj.weight"] == ((256, 128), "bfloat16")
    assert not [var.name_hint for var in exported.mod.get_global_vars() if "sliding" in var.name_hint]


def test_nvfp4_modules_are_dequantize_and_matmul():
    """What RewriteNVFP4Matmul looks for: one a linear layer, and for the tied table two."""
    config = small_config(tie_word_embeddings=True)
    exported = export(config, dtype="float16", target=LLVM, quantized=lambda module: module != "lm_head")
    text = exported.mod["prefill"].script()
    assert text.count("nvfp4.dequantize") == 4 + 2
    assert exported.params["model.layers.0.mlp.gate_up_proj.global_scale"] == ((512,), "float32")
    assert exported.params["model.embed_tokens.codes"] == ((512, 64), "uint8")
    assert not [name for name in exported.params if name.startswith("lm_head")]


def test_unknown_dtype_is_refused():
    with pytest.raises(
        NVFP4Error, match="model dtype is 'float64', expected one of float32, float16, bfloat16"
    ):
        export(small_config(), dtype="float64", target=LLVM)
