"""NVIDIA ModelOpt's Hugging Face export: ``weight``, ``weight_scale``, ``weight_scale_2``.

The config stands in hf_quant_config.json and, in other words, in config.json's quantization_config.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nvfp4_tvm.checkpoint.base import Format, Scheme, quantization_config, register_format
from nvfp4_tvm.checkpoint.patterns import Patterns, role_of
from nvfp4_tvm.checkpoint.storage import read_json
from nvfp4_tvm.errors import CheckpointError
from nvfp4_tvm.numerics import GROUP_SIZE

# quant_algo, as modelopt.torch.export writes it, to what this package calls it. W4A16_NVFP4 differs from
# NVFP4 in the activations alone. W4A8_NVFP4_FP8 scales its weights by another rule.
_KINDS = {
    "NVFP4": "nvfp4",
    "W4A16_NVFP4": "nvfp4",
    "NVFP4_AWQ": "nvfp4_awq",
    "NVFP4_SVD": "nvfp4_svdquant",
    "W4A8_NVFP4_FP8": "w4a8_nvfp4_fp8",
    "FP8": "fp8",
    "FP8_PER_CHANNEL_PER_TOKEN": "fp8",
    "FP8_PB_WO": "fp8",
    "MXFP8": "mxfp8",
    "MXFP4": "mxfp4",
    "W4A8_MXFP4_FP8": "mxfp4",
    "W4A16_AWQ": "int4",
    "W4A8_AWQ": "int4",
    "W8A16": "int8",
    "W8A8_SQ_PER_CHANNEL": "int8",
}


@register_format
class ModelOpt(Format):
    """See the module. MIXED_PRECISION names each quantized layer in ``quantized_layers``."""

    name = "modelopt"
    global_scale = "weight_scale_2"
    ignored = frozenset({"input_scale"})
    refused = {  # noqa: RUF012
        "pre_quant_scale": "an input scaling (NVFP4_AWQ)",
        "svdquant_lora_a": "a low-rank part (NVFP4_SVD)",
        "svdquant_lora_b": "a low-rank part (NVFP4_SVD)",
        "weight_zero_point": "zero points",
    }

    def __init__(self, config: Mapping[str, Any], folder: Path):
        super().__init__(config, folder)
        details, where = self._details()
        self._where = where
        algo = details.get("quant_algo")
        if algo is not None and not isinstance(algo, str):
            raise CheckpointError(
                f"{where}: quant_algo: found {algo!r:.80}, expected a string such as 'NVFP4'"
            )
        excluded = details.get("exclude_modules", details.get("ignore"))
        self._excluded = Patterns(excluded, f"{where}: exclude_modules", wildcards=True)
        self._layers: dict[str, str] | None = None
        if algo == "MIXED_PRECISION":
            self._layers = self._quantized_layers(details.get("quantized_layers"))
        self._kind = (
            self._kind_of(algo, details.get("group_size"), "quant_algo") if self._layers is None else ""
        )

    @classmethod
    def detect(cls, config: Mapping[str, Any], folder: Path) -> bool:
        """Return whether ModelOpt wrote the checkpoint."""
        quant = quantization_config(config, folder)
        if quant is None:
            return (folder / "hf_quant_config.json").is_file()
        method = quant.get("quant_method")
        if isinstance(method, str) and method.startswith("modelopt"):  # also "modelopt_fp4", in older exports
            return True
        return method is None and ("quant_algo" in quant or "quantization" in quant)

    def _details(self) -> tuple[Mapping[str, Any], Path]:
        """Return the object that holds quant_algo, and its file. ModelOpt's own file comes first."""
        own = self.folder / "hf_quant_config.json"
        quant = quantization_config(self.config, self.folder / "config.json")
        choices = []
        if own.is_file():
            choices.append((read_json(own), own))
        if quant is not None:
            choices.append((quant, self.folder / "config.json"))
        found = []
        for value, path in choices:
            details = value.get("quantization", value)
            if not isinstance(details, dict) or "quant_algo" not in details:
                raise CheckpointError(
                    f"{path}: found no quant_algo, expected ModelOpt's quantization settings"
                )
            found.append((details, path))
        if len({str(d["quant_algo"]) for d, _ in found}) > 1:
            raise CheckpointError(
                f"{found[0][1]}: found quant_algo {found[0][0]['quant_algo']!r:.40}, but config.json says "
                f"{found[1][0]['quant_algo']!r:.40}: expected the same; remove the file that does not "
                "belong here"
            )
        return found[0]

    def _quantized_layers(self, layers: Any) -> dict[str, str]:
        if not isinstance(layers, dict) or not all(isinstance(v, dict) for v in layers.values()):
            raise CheckpointError(f"{self._where}: found no quantized_layers, which MIXED_PRECISION needs")
        return {
            name: self._kind_of(v.get("quant_algo"), v.get("group_size"), f"quantized_layers of {name[:200]}")
            for name, v in layers.items()
        }

    def _kind_of(self, algo: Any, group_size: Any, key: str) -> str:
        if algo is None:
            return "plain"  # only the KV cache is quantized
        kind = _KINDS.get(algo) if isinstance(algo, str) else None
        if kind is None:
            raise CheckpointError(
                f"{self._where}: {key}: found {algo!r:.80}, expected one of {', '.join(_KINDS)}, "
                "MIXED_PRECISION"
            )
        if kind == "nvfp4" and group_size not in (None, GROUP_SIZE):
            raise CheckpointError(
                f"{self._where}: {key}: found group_size {group_size!r:.40}, expected {GROUP_SIZE} for {algo}"
            )
        return kind

    def scheme(self, module: str) -> Scheme:
        """Return what ModelOpt's config says about `module`."""
        if self._excluded.matches(module):
            return Scheme("plain")
        if self._layers is not None:
            return Scheme(self._layers.get(module, "plain"))
        role = role_of(module)
        if role == "embedding":  # ModelOpt quantizes linear layers only
            return Scheme("plain")
        return Scheme(self._kind, certain=role == "linear" or self._kind == "plain")
