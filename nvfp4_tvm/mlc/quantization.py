"""The quantizations that MLC-LLM lists: ``nvfp4_skel``, ``nvfp4_skel_full`` and both in float16."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

KIND = "nvfp4"


@dataclass
class NVFP4Quantize:
    """NVFP4 weights, activations of 16 bits.

    Where a checkpoint is NVFP4 already, it decides which layers are; the options are for checkpoints that are
    quantized on the way.

    Attributes
    ----------
    name : str
        What ``--quantization`` takes.
    kind : str
        ``"nvfp4"``.
    model_dtype : {"bfloat16", "float16"}
        Of activations, norms, biases and unquantized layers.
    quantize_embedding : bool
        Quantize the embedding, and with it a head that is tied to it.
    quantize_final_fc : bool
        Quantize a head of its own.
    """

    name: str
    kind: str
    model_dtype: Literal["bfloat16", "float16"]
    quantize_embedding: bool = False
    quantize_final_fc: bool = False

    def __post_init__(self) -> None:
        if self.kind != KIND:
            raise ValueError(f"quantization {self.name}: found kind {self.kind!r}, expected {KIND!r}")

    def quantize_model(self, model: Any, quant_map: Any, name_prefix: str, model_config: Any) -> Any:
        """Replace the layers of a model that are to be NVFP4; see `mutator.quantize_model`."""
        from nvfp4_tvm.mlc.mutator import quantize_model

        return quantize_model(self, model, quant_map, name_prefix, model_config)


_FULL = {"quantize_embedding": True, "quantize_final_fc": True}
ENTRIES = (
    NVFP4Quantize("nvfp4_skel", KIND, "bfloat16"),
    NVFP4Quantize("nvfp4_skel_f16", KIND, "float16"),
    NVFP4Quantize("nvfp4_skel_full", KIND, "bfloat16", **_FULL),
    NVFP4Quantize("nvfp4_skel_full_f16", KIND, "float16", **_FULL),
)
