"""The registry of models: one that supports group quantization, one that does not."""

import dataclasses

from mlc_llm.loader import QuantizeMapping

from .small import Small, SmallConfig, huggingface


@dataclasses.dataclass
class Model:
    name: str
    config: type
    model: type
    source: dict
    quantize: dict


def _no_quant(model_config, quantization):
    model = Small(model_config)
    model.to(quantization.model_dtype)
    return model, QuantizeMapping({}, {})


def _group_quant(model_config, quantization):
    raise AssertionError("not of interest here")


SOURCE = {"huggingface-torch": huggingface, "huggingface-safetensor": huggingface}
MODELS = {
    "small": Model(
        "small", SmallConfig, Small, dict(SOURCE), {"no-quant": _no_quant, "group-quant": _group_quant}
    ),
    "other": Model("other", SmallConfig, Small, dict(SOURCE), {"no-quant": _no_quant}),
}
