"""Quantizes every model of MLC-LLM that supports group quantization, and prints what it found as JSON.

Run by tests/nvfp4_tvm/mlc/test_mlc_llm.py where MLC-LLM can be imported. Configurations are MLC-LLM's own presets,
with one block.
"""

import json

from mlc_llm.model import MODEL_PRESETS, MODELS
from mlc_llm.quantization import QUANTIZATION

QUANTIZE = QUANTIZATION["nvfp4_skel"]
LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


def one_block(config):
    """A preset with one block."""
    config = {key: one_block(value) if isinstance(value, dict) else value for key, value in config.items()}
    return {key: 1 if key in LAYERS else value for key, value in config.items()}


def check(model, preset):
    """Return the packed layers of a model, or what is wrong."""
    config = model.config.from_dict(one_block(preset))
    module, _ = model.quantize["nvfp4"](config, QUANTIZE)
    parameters = dict(module.named_parameters())
    names = set(parameters)
    mapping = model.source["huggingface-safetensor"](config, QUANTIZE)
    mapped = set(mapping.param_map) | {name for source in mapping.packed.values() for name in source.names}
    return {
        "packed": sorted(mapping.packed),
        "unmapped": sorted(names - mapped),
        "unknown": sorted(mapped - names),
        "matrices": sorted(n for n, p in parameters.items() if len(p.shape) > 1 and n.endswith(".weight")),
    }


def group_quantized(model, preset):
    """Return what is wrong with a model in MLC-LLM's own quantization, None if nothing is."""
    config, quantization = model.config.from_dict(one_block(preset)), QUANTIZATION["q4f16_1"]
    try:
        model.quantize["group-quant"](config, quantization)
        model.source["huggingface-safetensor"](config, quantization)
    except Exception as error:
        return type(error).__name__
    return None


def main():
    """Print a row for each model."""
    rows = {}
    for name, model in MODELS.items():
        presets = [preset for preset in MODEL_PRESETS.values() if preset.get("model_type") == name]
        if "group-quant" not in model.quantize:
            rows[name] = {"skipped": "no group quantization", "registered": "nvfp4" in model.quantize}
        elif not presets:
            rows[name] = {"skipped": "no preset", "registered": "nvfp4" in model.quantize}
        else:
            try:
                rows[name] = check(model, presets[0])
            except Exception as error:
                rows[name] = {
                    "error": f"{type(error).__name__}: {error}",
                    "with q4f16_1": group_quantized(model, presets[0]),
                }
    print("RESULT", json.dumps(rows))


main()
