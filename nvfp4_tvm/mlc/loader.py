"""Loading checkpoints into MLC-LLM's models, the weights of their NVFP4 layers packed.

Where a parameter comes from is what the model's own loader says (``MODELS[m].source``): which tensors of the
checkpoint, and the function that puts them together.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from mlc_llm.loader import ExternMapping
from mlc_llm.loader.stats import Stats

from nvfp4_tvm.checkpoint.base import PLAIN_FORMATS, open_checkpoint
from nvfp4_tvm.errors import CheckpointError
from nvfp4_tvm.mlc.pack import pack_rows, quantize_parts
from nvfp4_tvm.mlc.rows import source_rows
from nvfp4_tvm.scaling import is_finite
from nvfp4_tvm.shared_amax import SharedAmax

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PackedSource:
    """Where the packed parameters of a layer come from.

    Attributes
    ----------
    names : tuple of str
        The parameters: ``words``, ``scales`` and ``global_scale``.
    tensors : tuple of str
        Weights in the checkpoint, by the names that they have unquantized.
    function : callable
        Puts the weights together.
    """

    names: tuple[str, ...]
    tensors: tuple[str, ...]
    function: Callable[..., np.ndarray]

    @property
    def modules(self) -> tuple[str, ...]:
        """Return the modules of the checkpoint that the weights belong to."""
        return tuple(name.removesuffix(".weight") for name in self.tensors)


@dataclass
class PackedMapping(ExternMapping):
    """An ``ExternMapping`` without the weights of NVFP4 layers, which are in `packed`."""

    packed: dict[str, PackedSource] = field(default_factory=dict)


def packed_mapping(mapping: Any, quantized: Mapping[str, Sequence[str]]) -> PackedMapping:
    """Split a model's mapping into what is packed and what is not.

    Parameters
    ----------
    mapping : ExternMapping
        Of the unquantized model.
    quantized : mapping of str to sequence of str
        The packed parameters of each weight.
    """
    packed = {
        weight: PackedSource(tuple(names), tuple(mapping.param_map[weight]), mapping.map_func[weight])
        for weight, names in quantized.items()
    }
    plain = {name: tensors for name, tensors in mapping.param_map.items() if name not in packed}
    functions = {name: mapping.map_func[name] for name in plain}
    return PackedMapping(plain, functions, mapping.unused_params, packed)


class PackedLoader:
    """Yields the parameters of a model, one layer's at a time; files are mapped, not loaded.

    Parameters
    ----------
    path : Path
        A file in the checkpoint's folder.
    mapping : PackedMapping

    Raises
    ------
    CheckpointError
        If a tensor is missing.
    """

    def __init__(self, path: Path, mapping: PackedMapping):
        self.stats = Stats()
        self._mapping = mapping
        self._checkpoint = open_checkpoint(path if path.is_dir() else path.parent)
        weights = {
            module: tensor
            for source in mapping.packed.values()
            for module, tensor in zip(source.modules, source.tensors, strict=True)
        }
        #: As in a checkpoint that `nvfp4_tvm.quantize` writes: whether or not the model fuses these layers.
        self._shared = SharedAmax(weights, self._plain_tensor, self._checkpoint.release)
        self._is_quantized = any(map(self._checkpoint.is_quantized, self._checkpoint.module_names()))
        self._check_names()

    def load(
        self, device: Any, preshard_funcs: Mapping[str, Callable[[Any], Sequence[Any]]] | None = None
    ) -> Iterator[tuple[str, Any]]:
        """Yield names and values of all parameters, or of their shards.

        Raises
        ------
        CheckpointError
            If the checkpoint is damaged, or holds a layer in another format than the model does.
        """
        from mlc_llm.support.preshard import _sharded_param_name

        for name, array in self._arrays():
            parameter = tvm.runtime.tensor(array, device=device)
            logger.info("%s: %s%s", name, array.dtype, list(array.shape))
            if preshard_funcs and name in preshard_funcs:
                for shard, value in enumerate(preshard_funcs[name](parameter)):
                    yield _sharded_param_name(name, shard), value
            else:
                yield name, parameter
        self.stats.log_time_info("HF")

    def _arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        mapping, checkpoint = self._mapping, self._checkpoint
        for name, tensors in mapping.param_map.items():
            with self.stats.timer("map_time_sec"):
                array = self._plain(name, tensors)
            yield name, array
            self._release(tensors)
        for weight, source in mapping.packed.items():
            with self.stats.timer("quant_time_sec"):
                arrays = self._packed(weight, source)
            yield from zip(source.names, arrays, strict=True)
            for module in source.modules:
                self._release(checkpoint.tensors_of(module))

    def _release(self, tensors: Sequence[str]) -> None:
        for tensor in tensors:
            self._checkpoint.release(tensor)

    def _plain(self, name: str, tensors: Sequence[str]) -> np.ndarray:
        parts = [widened_vector(self._plain_tensor(tensor)) for tensor in tensors]
        self.stats.total_param_num += sum(part.size for part in parts)
        with np.errstate(over="ignore"):
            array = self._mapping.map_func[name](*parts)
        if array.dtype.kind in "fV" and not is_finite(array.reshape(-1)):
            raise CheckpointError(
                f"{self._checkpoint.path}: {', '.join(tensors)}: found values that are not finite in "
                f"{array.dtype}, expected numbers: choose nvfp4_skel (bfloat16) or repair the checkpoint"
            )
        return array

    def _plain_tensor(self, name: str) -> np.ndarray:
        info = self._checkpoint.tensor_info(name)
        if info.dtype not in PLAIN_FORMATS:
            raise CheckpointError(
                f"{info.file}: tensor {name}: found {info}, expected BF16, F16 or F32, as the model keeps this "
                "layer unquantized: give convert_weight the config.json that lies beside the weights"
            )
        return self._checkpoint.tensor(name)

    def _packed(self, weight: str, source: PackedSource) -> list[np.ndarray]:
        if not self._is_quantized:
            return self._quantized(weight, source)
        tensors = [self._checkpoint.nvfp4(module) for module in source.modules]
        self.stats.total_param_num += sum(tensor.codes.size * 2 for tensor in tensors)
        rows = source_rows(source.function, [tensor.shape for tensor in tensors])
        if rows is None:
            raise CheckpointError(
                f"{self._checkpoint.path}: {', '.join(source.modules)}: found NVFP4 weights, expected unquantized "
                f"ones: MLC-LLM makes {weight} of more than their rows"
            )
        return pack_rows(tensors, rows)

    def _quantized(self, weight: str, source: PackedSource) -> list[np.ndarray]:
        parts = [self._plain_tensor(name) for name in source.tensors]
        self.stats.total_param_num += sum(part.size for part in parts)
        rows = source_rows(source.function, [part.shape for part in parts])
        if rows is None:
            return quantize_array(np.asarray(source.function(*parts)), weight)
        flat = [part.reshape(-1, part.shape[-1]) for part in parts]
        weights = dict(zip(source.modules, flat, strict=True))
        return pack_rows(quantize_parts(weights, self._shared), rows)

    def _check_names(self) -> None:
        mapping, names = self._mapping, set(self._checkpoint.names())
        used = {tensor for tensors in mapping.param_map.values() for tensor in tensors}
        modules = {module for source in mapping.packed.values() for module in source.modules}
        packed = {name for name in names if name.rpartition(".")[0] in modules and not name.endswith(".bias")}
        found = {name.rpartition(".")[0] for name in packed} | (modules & names)
        missing = sorted((used - names) | (modules - found))
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise CheckpointError(
                f"{self._checkpoint.path}: tensor {missing[0]}{more}: found no such tensor, expected it for this "
                "model: the checkpoint is incomplete"
            )
        unused = sorted(names - used - packed - modules - set(mapping.unused_params))
        if unused:
            logger.warning(
                "%s: %d tensors are not used: %s", self._checkpoint.path, len(unused), ", ".join(unused)
            )


def widened_vector(array: np.ndarray) -> np.ndarray:
    """Return a vector of 16-bit numbers in float32, anything else as it is.

    Models compute with the weights of norms while loading (Gemma adds one), and round to their own dtype after
    that. In the 16 bits of the checkpoint the sum itself would be rounded.
    """
    return array.astype(np.float32) if array.ndim == 1 and array.dtype.itemsize == 2 else array


def quantize_array(weight: np.ndarray, name: str) -> list[np.ndarray]:
    """Quantize and pack a weight ``[N, K]``, or the weights ``[E, N, K]`` of experts.

    Returns
    -------
    list of numpy.ndarray
        ``words``, ``scales`` and ``global_scale``.
    """
    lead = weight.shape[:-1]
    experts = weight if weight.ndim == 3 else weight[None]
    tensors = quantize_parts({f"{name}.{index}": expert for index, expert in enumerate(experts)})
    return pack_rows(tensors, np.arange(int(np.prod(lead))).reshape(lead))


def quantize_weight(weight: Any, name: str) -> list[Any]:
    """Quantize and pack a weight that MLC-LLM has loaded; what ``QuantizeMapping`` calls.

    Returns
    -------
    list of tvm.runtime.Tensor
        On the device of the weight.
    """
    return [tvm.runtime.tensor(array, device=weight.device) for array in quantize_array(weight.numpy(), name)]
