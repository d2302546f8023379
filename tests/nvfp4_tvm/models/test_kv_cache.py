"""The KV cache's functions, built for the targets; what they compute is tested with the decoders."""

import pytest
import tvm

from nvfp4_tvm.codegen import cuda_machine_code
from nvfp4_tvm.models import DecoderConfig, export


@pytest.mark.parametrize("head_dim", [64, 128])
def test_cuda_source(head_dim):
    """The attention functions come scheduled, and TVM's default pipeline schedules the rest."""
    config = DecoderConfig.from_hf(
        {
            "model_type": "qwen3", "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": head_dim, "vocab_size": 512,
            "max_position_embeddings": 256,
        }
    )  # fmt: skip
    target = tvm.target.Target("nvidia/geforce-rtx-4090")
    exported = export(config, dtype="bfloat16", target=target)
    scheduled = {
        var.name_hint
        for var, function in exported.mod.functions_items()
        if function.attrs and function.attrs.get("tirx.is_scheduled")
    }
    assert {"batch_prefill_ragged_kv", "batch_prefill_paged_kv", "batch_decode_paged_kv"} <= scheduled
    with cuda_machine_code("sm_89"):
        executable = tvm.compile(exported.mod, target=target)
    (host,) = executable.mod.imports
    (device,) = host.imports
    assert (host.kind, device.kind) == ("llvm", "cuda")
    source = device.inspect_source()
    for kernel in ("batch_prefill_ragged_kv", "batch_prefill_paged_kv", "batch_decode_paged_kv", "rotary"):
        assert f"{kernel}_kernel" in source
