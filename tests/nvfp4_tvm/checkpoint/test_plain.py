import make_checkpoints
import ml_dtypes
import numpy as np
import pytest
import raw_checkpoints as rc
import torch

from nvfp4_tvm.checkpoint import open_checkpoint

DTYPES = {
    "bf16": (torch.bfloat16, ml_dtypes.bfloat16),
    "fp16": (torch.float16, np.float16),
    "fp32": (torch.float32, "f4"),
}


@pytest.mark.parametrize("kind", DTYPES)
def test_unquantized(tmp_path, kind):
    torch_dtype, dtype = DTYPES[kind]
    folder = make_checkpoints.make_plain(tmp_path, dtype=torch_dtype, tie=True, max_shard_size="200KB")
    checkpoint = open_checkpoint(folder)
    checkpoint.verify()
    assert checkpoint.format == "none"
    assert {i.format for i in checkpoint.layers().values()} == {kind}
    model = make_checkpoints.make_model(dtype=torch_dtype, tie=True)
    for name, p in model.named_parameters():
        if name != "lm_head.weight":
            got = checkpoint.tensor(name)
            assert got.dtype == dtype
            np.testing.assert_array_equal(got.astype(np.float32), p.detach().float().numpy())


def test_another_method_is_listed(tmp_path):
    cfg = {"quantization_config": {"quant_method": "gptq"}}
    checkpoint = open_checkpoint(rc.write(tmp_path, "none", rc.tensors("compressed-tensors"), cfg))
    assert checkpoint.format == "gptq"
    layers = checkpoint.layers()
    assert layers[rc.DOWN].format == "gptq" and layers[rc.DOWN].refusal
    assert layers["model.norm"].refusal is None
