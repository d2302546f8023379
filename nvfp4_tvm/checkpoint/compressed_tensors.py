"""The compressed-tensors format of llm-compressor and vLLM: ``weight_packed``, ``weight_scale``,
``weight_global_scale``.

The global scale is stored as its reciprocal. config.json's quantization_config holds groups of modules, each
with targets (class names, module names, ``re:`` patterns) and a scheme, and a list of modules to ignore.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nvfp4_tvm.checkpoint.base import Format, Scheme, quantization_config, register_format
from nvfp4_tvm.checkpoint.patterns import Patterns, role_of
from nvfp4_tvm.errors import CheckpointError, UnsupportedFormatError
from nvfp4_tvm.numerics import GROUP_SIZE

_PACKED = "nvfp4-pack-quantized"
# Statuses in which the library keeps weights unpacked; "compressed" and "frozen" stand in real checkpoints.
_UNPACKED_STATUS = frozenset({"initialized", "calibration"})


@register_format
class CompressedTensors(Format):
    """See the module."""

    name = "compressed-tensors"
    codes = "weight_packed"
    global_scale = "weight_global_scale"
    ignored = frozenset({"input_global_scale", "input_scale"})
    refused = {  # noqa: RUF012
        "weight_zero_point": "zero points",
        "weight_shape": "the shape of packed integers",
        "weight_g_idx": "an activation order",
    }

    def __init__(self, config: Mapping[str, Any], folder: Path):
        super().__init__(config, folder)
        self._where = folder / "config.json"
        quant = quantization_config(config, self._where) or {}
        for key in ("sparsity_config", "transform_config"):
            value = quant.get(key)
            if isinstance(value, dict) and value.get("format") == "dense":
                continue
            if value:
                raise UnsupportedFormatError(
                    f"{self._where}: found {key}, expected none: sparse or transformed weights are not run"
                )
        status = quant.get("quantization_status", "compressed")
        if not isinstance(status, str) or status in _UNPACKED_STATUS:
            raise UnsupportedFormatError(
                f"{self._where}: found quantization_status {status!r:.40}, expected 'compressed': save the "
                "model with compression"
            )
        self._ignore = Patterns(quant.get("ignore"), f"{self._where}: ignore")
        groups = quant.get("config_groups")
        if not isinstance(groups, dict) or not groups:
            raise CheckpointError(
                f"{self._where}: found no config_groups, expected at least one group of modules"
            )
        if len(groups) > 1000:
            raise CheckpointError(f"{self._where}: found {len(groups)} config_groups, expected at most 1000")
        self._groups = [
            _Group(name, group, quant.get("format"), self._where) for name, group in groups.items()
        ]

    @classmethod
    def detect(cls, config: Mapping[str, Any], folder: Path) -> bool:
        """Return whether config.json names compressed-tensors."""
        quant = quantization_config(config, folder)
        return quant is not None and quant.get("quant_method") == "compressed-tensors"

    def scheme(self, module: str) -> Scheme:
        """Return what the groups say: names and patterns come before classes, as in the library."""
        if self._ignore.matches(module):
            return Scheme("plain")
        for group in self._groups:
            if group.names.matches(module):
                return Scheme(group.kind)
        role = role_of(module)
        for group in self._groups:
            if role == "embedding" and "Embedding" in group.classes:
                return Scheme(group.kind)
            if role != "embedding" and "Linear" in group.classes:
                return Scheme(group.kind, certain=role == "linear")
        # Any other target may be the name of this module's class.
        unknown = [g for g in self._groups if g.classes - {"Linear", "Embedding"}]
        return Scheme(unknown[0].kind, certain=False) if unknown and role != "embedding" else Scheme("plain")

    def multiplier(self, stored: np.float32) -> np.float32:
        """Return the reciprocal, rounded to float32."""
        return np.float32(1) / stored


class _Group:
    """One of ``config_groups``."""

    def __init__(self, name: str, group: Any, top_format: Any, path: Path):
        where = f"{path}: config_groups.{name[:80]}"
        if not isinstance(group, dict):
            raise CheckpointError(f"{where}: found {type(group).__name__}, expected an object")
        targets = group.get("targets")
        if not isinstance(targets, list) or not targets:
            raise CheckpointError(f"{where}: found targets {targets!r:.80}, expected a list of modules")
        self.names = Patterns(targets, f"{where}: targets")
        # a name without dots may be a class: classes are matched by `CompressedTensors.scheme`
        self.classes = {t for t in targets if "." not in t and not t.startswith("re:") and t[:1].isupper()}
        own_format = group.get("format") or (None if top_format == "mixed-precision" else top_format)
        self.kind = _kind(group.get("weights"), own_format, where)


def _kind(weights: Any, form: Any, where: str) -> str:
    if weights is None:
        return "plain"  # a group that quantizes activations only
    if not isinstance(weights, dict):
        raise CheckpointError(f"{where}: weights: found {type(weights).__name__}, expected an object")
    bits, kind, group_size = weights.get("num_bits"), weights.get("type"), weights.get("group_size")
    if type(bits) is not int or not isinstance(kind, str):
        raise CheckpointError(
            f"{where}: weights: found num_bits {bits!r:.40} and type {kind!r:.40}, expected a number and a "
            "string"
        )
    if kind != "float":
        return f"{kind[:20]}{bits}"
    if bits != 4:
        return f"fp{bits}"
    if group_size == 32:
        return "mxfp4"
    if group_size != GROUP_SIZE:
        raise CheckpointError(
            f"{where}: weights: found group_size {group_size!r:.40}, expected {GROUP_SIZE} for NVFP4"
        )
    if weights.get("symmetric") is False:
        raise UnsupportedFormatError(
            f"{where}: weights: found symmetric false, expected true: NVFP4 has no zero points"
        )
    if weights.get("scale_dtype") not in (None, "torch.float8_e4m3fn"):
        raise UnsupportedFormatError(
            f"{where}: weights: found scale_dtype {weights['scale_dtype']!r:.40}, expected "
            "torch.float8_e4m3fn"
        )
    if form not in (None, _PACKED):
        raise UnsupportedFormatError(f"{where}: found format {form!r:.40}, expected {_PACKED!r} for NVFP4")
    return "nvfp4"
