"""Decoders built by TVM's own pipelines for llvm, without this package's passes."""

from dataclasses import dataclass

import tvm

from nvfp4_tvm.checkpoint import open_checkpoint
from nvfp4_tvm.models import (
    DecoderConfig,
    check_tensors,
    export,
    load_parameter,
    parameter_sources,
    quantized_modules,
)
from nvfp4_tvm.runtime import Runner

LLVM = tvm.target.Target("llvm")


@dataclass
class Build:
    """A decoder compiled for this machine, and what a `Runner` needs."""

    config: DecoderConfig
    executable: object
    params: dict
    param_names: list

    def runner(self, context=None, chunk=64):
        metadata = {
            "param_names": self.param_names,
            "vocab_size": self.config.vocab_size,
            "context_length": context or self.config.max_position_embeddings,
            "prefill_chunk_size": chunk,
        }
        return Runner(self.executable, self.params, metadata, tvm.cpu())


def plain_build(folder, dtype="float32", target=LLVM):
    """Compile a checkpoint; NVFP4 weights are dequantized inside the functions, by the operator's TIR."""
    checkpoint = open_checkpoint(folder)
    config = DecoderConfig.from_hf(checkpoint.config)
    check_tensors(checkpoint, config)
    quantized = quantized_modules(checkpoint)
    exported = export(config, dtype=dtype, target=target, quantized=quantized)
    sources = parameter_sources(config, quantized, dtype)
    assert {name: (source.shape, source.dtype) for name, source in sources.items()} == exported.params
    params = {name: load_parameter(checkpoint, sources[name]) for name in exported.params}
    for name, (shape, kind) in exported.params.items():
        assert (params[name].shape, str(params[name].dtype)) == (shape, kind), name
    return Build(config, tvm.compile(exported.mod, target=target), params, list(exported.params))
