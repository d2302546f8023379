"""Checkpoints that hold no NVFP4: unquantized ones, and those of formats this package does not run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nvfp4_tvm.checkpoint.base import Format, Scheme, quantization_config, register_format
from nvfp4_tvm.checkpoint.patterns import role_of


@register_format
class Plain(Format):
    """An unquantized Hugging Face checkpoint: no quantization_config."""

    name = "none"

    @classmethod
    def detect(cls, config: Mapping[str, Any], folder: Path) -> bool:
        """Return whether neither config.json nor hf_quant_config.json speaks of quantization."""
        return quantization_config(config, folder) is None and not (folder / "hf_quant_config.json").is_file()

    def scheme(self, module: str) -> Scheme:
        """Return that `module` is unquantized."""
        return Scheme("plain")


class Foreign(Format):
    """A checkpoint of another quantization method: its layers can be listed, and are refused.

    Not in the registry: `base.open_checkpoint` takes it when no registered format knows the checkpoint.
    """

    name = "foreign"
    global_scale = "weight_scale_2"

    def __init__(self, config: Mapping[str, Any], folder: Path):
        super().__init__(config, folder)
        method = (quantization_config(config, folder) or {}).get("quant_method")
        self.name = method[:40] if isinstance(method, str) and method else "unknown quantization"

    def scheme(self, module: str) -> Scheme:
        """Return the method for linear layers."""
        return Scheme(self.name if role_of(module) == "linear" else "plain")
