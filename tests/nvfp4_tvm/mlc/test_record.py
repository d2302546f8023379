"""The record of a checkpoint: into mlc-chat-config.json, and through everything that reads it."""

import json

import pytest

from nvfp4_tvm.checkpoint import open_checkpoint
from nvfp4_tvm.errors import CheckpointError
from nvfp4_tvm.mlc.record import Record, record_checkpoint, record_of

GATES = {f"model.layers.{index}.gate" for index in range(2)}
PLAIN = {"model.embed_tokens", "lm_head", "model.vision", "model.layers.1.o_proj", *GATES}


@pytest.mark.parametrize("form", ["modelopt", "compressed_tensors"])
def test_a_record_names_the_unquantized_matrices(form, request):
    record = record_checkpoint(open_checkpoint(request.getfixturevalue(form)))
    assert record.unquantized == PLAIN
    assert record.is_quantized("model.layers.0.o_proj") and not record.is_quantized("lm_head")


def test_an_unquantized_checkpoint_has_none(plain):
    assert record_checkpoint(open_checkpoint(plain)) is None


def chat_config(mlc_llm, small, checkpoint, out, name="nvfp4_skel"):
    quantization = mlc_llm.quantization.QUANTIZATION[name]
    out.mkdir(exist_ok=True)
    mlc_llm.interface.gen_config.gen_config(
        config=checkpoint / "config.json", model=small, quantization=quantization, output=out
    )
    return json.loads((out / "mlc-chat-config.json").read_text())


def test_gen_config_writes_it_and_configurations_carry_it(mlc_llm, small, modelopt, tmp_path):
    chat = chat_config(mlc_llm, small, modelopt, tmp_path)
    assert set(chat["model_config"]["nvfp4"]["unquantized"]) == PLAIN
    config = small.config.from_dict({**chat["model_config"], "conv_template": "LM"})
    config.kwargs = {}  # as compile does
    again = type(config).from_dict(config.asdict())  # as overrides do
    assert record_of(again) == Record("modelopt", frozenset(PLAIN))
    assert again.asdict()["nvfp4"] == chat["model_config"]["nvfp4"]  # as the hash of libraries does


def test_what_has_no_record_is_as_it_was(mlc_llm, small, plain, modelopt, tmp_path):
    assert "nvfp4" not in chat_config(mlc_llm, small, plain, tmp_path)["model_config"]
    assert "nvfp4" not in chat_config(mlc_llm, small, modelopt, tmp_path, "q0bf16")["model_config"]
    config = small.config.from_dict({"hidden_size": 64})
    assert record_of(config) is None and "nvfp4" not in config.asdict()


def test_without_weights_there_is_no_record_to_write(mlc_llm, small, modelopt, tmp_path):
    (tmp_path / "config.json").write_bytes((modelopt / "config.json").read_bytes())
    with pytest.raises(
        CheckpointError, match=r"no safetensors files, expected the weights beside config.json"
    ):
        chat_config(mlc_llm, small, tmp_path, tmp_path / "out")


def test_models_see_the_quantization_configs_that_are_theirs(small):
    fp8 = {"quant_method": "fp8"}
    assert small.config.from_dict({"quantization_config": fp8}).kwargs == {"quantization_config": fp8}
    for method in ("modelopt", "compressed-tensors"):
        assert small.config.from_dict({"quantization_config": {"quant_method": method}}).kwargs == {}
    with pytest.raises(AssertionError):
        small.config.from_dict({"quantization_config": {"quant_method": "awq"}})


@pytest.mark.parametrize("value", [[], {"format": "modelopt"}, {"format": 3, "unquantized": []}])
def test_a_damaged_record_is_refused(small, value):
    with pytest.raises(CheckpointError, match="write it again with gen_config"):
        small.config.from_dict({"nvfp4": value})
