"""The registry of quantizations."""

import dataclasses


@dataclasses.dataclass
class NoQuantize:
    name: str
    kind: str
    model_dtype: str


QUANTIZATION = {"q0bf16": NoQuantize("q0bf16", "no-quant", "bfloat16")}
