import json

import pytest
import raw_checkpoints as rc

from nvfp4_tvm.checkpoint import open_checkpoint
from nvfp4_tvm.errors import OutputError
from nvfp4_tvm.quantize_config import copy_files, write_configs


@pytest.fixture
def source(tmp_path):
    return rc.write(tmp_path / "source", "none")


@pytest.mark.parametrize("format", ["modelopt", "compressed-tensors"])
def test_a_tied_head_is_named_although_it_has_no_tensor(source, tmp_path, format):
    write_configs(open_checkpoint(source), tmp_path, format, ["model.embed_tokens"])
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    embedding = ["model.embed_tokens"] if format == "modelopt" else []
    assert config["quant_method"] == format and config["ignore"] == [*embedding, "lm_head"]
    assert (tmp_path / "hf_quant_config.json").exists() == (format == "modelopt")


def test_what_cannot_be_written(source, tmp_path):
    (tmp_path / "tokenizer.json").mkdir()
    (source / "tokenizer.json").write_text("{}")
    with pytest.raises(OutputError, match=r"tokenizer\.json: cannot be copied: Is a directory"):
        copy_files(source, tmp_path)
    with pytest.raises(OutputError, match=r"config\.json: cannot be written: No such file"):
        write_configs(open_checkpoint(source), tmp_path / "nowhere", "compressed-tensors", [])
