"""Which layers of a model of MLC-LLM become NVFP4, and replacing them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from mlc_llm.nn.expert import MixtralExperts
from mlc_llm.quantization.utils import is_final_fc, is_moe_gate
from tvm.relax.frontend import nn

from nvfp4_tvm.errors import CheckpointError, ShapeError
from nvfp4_tvm.mlc import compat
from nvfp4_tvm.mlc.experts import NVFP4Experts
from nvfp4_tvm.mlc.linear import FIELDS, NVFP4Embedding, NVFP4Linear
from nvfp4_tvm.mlc.quantization import NVFP4Quantize
from nvfp4_tvm.mlc.record import record_of

#: Classes of layers and what takes their place; the first match counts.
REPLACEMENTS: list[tuple[type, Any]] = [
    (nn.Linear, NVFP4Linear),
    (nn.Embedding, NVFP4Embedding),
    (MixtralExperts, NVFP4Experts),
]


def quantize_model(
    quantization: NVFP4Quantize,
    model: nn.Module,
    quant_map: Any,
    name_prefix: str,
    model_config: Any,
    sources: Mapping[str, list[str]] | None = None,
) -> nn.Module:
    """Replace the layers of a model that are to be NVFP4.

    Parameters
    ----------
    quantization : NVFP4Quantize
    model : nn.Module
        Changed.
    quant_map : QuantizeMapping
        Gets an entry for each weight that is replaced.
    name_prefix : str
        Of the model's name in the names of its parameters.
    model_config : ConfigBase
        Of the model; holds the record of the checkpoint, if it is NVFP4.
    sources : mapping, optional
        Names of the tensors in the checkpoint that each parameter is made of; needed if there is a record.

    Raises
    ------
    CheckpointError
        If the checkpoint holds as NVFP4 what the model cannot.
    ShapeError
        If a layer cannot be NVFP4, or not in this number of shards.
    """
    model.to(dtype=quantization.model_dtype)
    return _Mutator(quantization, quant_map, model_config, sources or {}).visit(name_prefix, model)


class _Mutator(nn.Mutator):
    def __init__(
        self, quantization: NVFP4Quantize, quant_map: Any, config: Any, sources: Mapping[str, list[str]]
    ):
        super().__init__()
        self._quantization, self._map, self._config, self._sources = quantization, quant_map, config, sources
        self._record = record_of(config)

    def visit_module(self, name: str, node: nn.Module) -> Any:
        """Return what takes the place of a module."""
        new = next((new for old, new in REPLACEMENTS if isinstance(node, old)), None)
        if new is None:
            if getattr(node, "no_quantization", False) and self._record is None:
                return node
            return self.visit(name, node)
        if not self._is_quantized(name, node):
            return node
        weight = node.weight
        shape = tuple(self._extent(extent, name) for extent in weight.shape)
        fields = [f"{name}.{field}" for field in FIELDS]
        self._map.param_map[f"{name}.weight"] = fields
        self._map.map_func[f"{name}.weight"] = functools.partial(_quantize, name=name)
        shards = getattr(self._config, "tensor_parallel_shards", 1)
        return new.from_module(node, name, shape, self._quantization.model_dtype, shards)

    def _is_quantized(self, name: str, node: nn.Module) -> bool:
        gate = isinstance(node, nn.Linear) and is_moe_gate(name, node)
        excluded = gate or getattr(node, "no_quantization", False)
        if self._record is None:
            if excluded:
                return False
            if isinstance(node, nn.Embedding):
                return self._quantization.quantize_embedding
            return not is_final_fc(name) or self._quantization.quantize_final_fc
        parts = [tensor.removesuffix(".weight") for tensor in self._sources.get(f"{name}.weight", [])]
        states = {part: self._record.is_quantized(part) for part in parts}
        if len(set(states.values())) > 1:
            plain = ", ".join(part for part, quantized in states.items() if not quantized)
            raise CheckpointError(
                f"layer {name}: found {plain} unquantized and the layer's other parts NVFP4, expected all parts "
                "of a fused layer in one format: quantize the checkpoint with all of them or none"
            )
        quantized = any(states.values())
        if quantized and excluded:
            raise CheckpointError(
                f"layer {name}: found NVFP4 weights, expected unquantized ones, as MLC-LLM's model computes this "
                "layer unquantized: quantize the checkpoint without it"
            )
        return quantized

    def _extent(self, extent: Any, name: str) -> int:
        known = compat.constant(extent)
        if known is not None:
            return known
        wanted = compat.var_name(extent)
        found = _find(self._config, wanted)
        if found is None:
            raise ShapeError(
                f"layer {name}: found the symbolic extent {wanted}, expected it in {type(self._config).__name__}: "
                "packed weights need constant shapes"
            )
        return found


def _quantize(weight: Any, name: str) -> list[Any]:
    from nvfp4_tvm.mlc.loader import quantize_weight  # needs what MLC-LLM imports after its quantizations

    return quantize_weight(weight, name)


def _find(config: Any, name: str) -> int | None:
    """Return a number of a configuration, or of those inside it."""
    value = getattr(config, name, None)
    if isinstance(value, int):
        return value
    if dataclasses.is_dataclass(config):
        for field in dataclasses.fields(config):
            inner = getattr(config, field.name, None)
            if dataclasses.is_dataclass(inner):
                found = _find(inner, name)
                if found is not None:
                    return found
    return None
