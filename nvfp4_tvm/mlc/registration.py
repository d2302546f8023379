"""The entries in MLC-LLM's registries of quantizations, models and loaders, and its pipeline."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nvfp4_tvm.mlc.quantization import ENTRIES, KIND

SOURCE = "huggingface-safetensor"


def register_quantizations(module: Any) -> None:
    """Enter the quantizations in ``mlc_llm.quantization.QUANTIZATION``."""
    for entry in ENTRIES:
        module.QUANTIZATION.setdefault(entry.name, entry)


def register_models(module: Any) -> None:
    """Enter NVFP4 in every model of ``mlc_llm.model.MODELS`` that supports group quantization."""
    for model in module.MODELS.values():
        if "group-quant" not in model.quantize or SOURCE not in model.source:
            continue
        original = model.source[SOURCE]
        model.quantize.setdefault(KIND, functools.partial(_quantize, model.quantize["no-quant"], original))
        model.source[SOURCE] = functools.partial(_source, model, original)


def _quantize(create: Any, source: Any, model_config: Any, quantization: Any) -> tuple[Any, Any]:
    """Create a model and replace its layers; ``MODELS[m].quantize["nvfp4"]``."""
    from mlc_llm.loader import QuantizeMapping

    from nvfp4_tvm.mlc.mutator import quantize_model
    from nvfp4_tvm.mlc.record import record_of

    sources = None
    if record_of(model_config) is not None:
        with without_external_modules():
            sources = source(model_config, quantization).param_map
    model, _ = create(model_config, quantization)
    quant_map = QuantizeMapping({}, {})
    return quantize_model(quantization, model, quant_map, "", model_config, sources), quant_map


@contextmanager
def without_external_modules() -> Iterator[None]:
    """Turn off the external kernels that `compile` turned on, as they are off while weights are converted.

    A model's loader traces the unquantized model for the names of its parameters. With CUTLASS, on sm_90a, that of
    a mixture in bfloat16 calls CUTLASS's grouped GEMM with offsets that it refuses.
    """
    from mlc_llm.op import extern

    enabled = extern.STORE
    extern.STORE = type(enabled)()
    try:
        yield
    finally:
        extern.STORE = enabled


def _source(model: Any, original: Any, model_config: Any, quantization: Any) -> Any:
    """Say where a model's parameters come from; ``MODELS[m].source["huggingface-safetensor"]``."""
    mapping = original(model_config, quantization)
    if getattr(quantization, "kind", None) != KIND:
        return mapping
    from nvfp4_tvm.mlc.loader import packed_mapping

    _, quant_map = model.quantize[KIND](model_config, quantization)
    return packed_mapping(mapping, quant_map.param_map)


def register_loaders(module: Any) -> None:
    """Let ``mlc_llm.loader.LOADER`` read what `_source` describes."""
    module.LOADER[SOURCE] = functools.partial(_load, module.LOADER[SOURCE])


def _load(original: Any, path: Path, extern_param_map: Any, quantize_param_map: Any = None) -> Any:
    """Return the loader for a mapping: this package's for packed parameters, else MLC-LLM's."""
    if not hasattr(extern_param_map, "packed"):
        return original(path=path, extern_param_map=extern_param_map, quantize_param_map=quantize_param_map)
    from nvfp4_tvm.mlc.loader import PackedLoader

    return PackedLoader(path, extern_param_map)


def install_pipeline(_module: Any) -> None:
    """Put this project's passes into the pipeline ``mlc_llm``."""
    from nvfp4_tvm.mlc.pipeline import install

    install()
