"""Where each parameter of a decoder comes from in a checkpoint, and reading it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import ml_dtypes  # noqa: F401  makes bfloat16 a name that NumPy knows
import numpy as np

from nvfp4_tvm import layout
from nvfp4_tvm.buffers import Buffers
from nvfp4_tvm.checkpoint.base import KV_SCALES, NVFP4Tensor
from nvfp4_tvm.checkpoint.reader import Checkpoint
from nvfp4_tvm.checkpoint.storage import TensorInfo
from nvfp4_tvm.errors import CheckpointError
from nvfp4_tvm.models.config import DecoderConfig
from nvfp4_tvm.models.structure import (
    EMBEDDING,
    HEAD,
    LinearSpec,
    Quantized,
    embedding_spec,
    head_spec,
    layer_spec,
    norms,
)
from nvfp4_tvm.scaling import CHUNK, is_finite, row_blocks

Field = Literal["weight", "bias", "codes", "scales", "global_scale"]


@dataclass(frozen=True)
class ParamSource:
    """One parameter of the model.

    Attributes
    ----------
    name : str
        In the exported functions, such as ``model.layers.0.self_attn.qkv_proj.codes``.
    shape : tuple of int
    dtype : str
    field : str
        ``weight`` and ``bias`` are plain tensors of the checkpoint, cast to ``dtype``; ``codes``, ``scales``
        and ``global_scale`` are parts of NVFP4 modules, the last spread to one value a row.
    modules : tuple of (str, int)
        Checkpoint modules and their rows, concatenated on axis 0 in this order.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    field: Field
    modules: tuple[tuple[str, int], ...]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


def quantized_modules(checkpoint: Checkpoint) -> Quantized:
    """Return the statement of which modules of ``checkpoint`` are NVFP4, false for modules it lacks."""
    quantized = {module for module in checkpoint.module_names() if checkpoint.is_quantized(module)}
    return quantized.__contains__


def _linear_sources(spec: LinearSpec, dtype: str) -> Iterator[ParamSource]:
    def source(field: Field, dtype: str, *columns: int) -> ParamSource:
        return ParamSource(f"{spec.name}.{field}", (spec.N, *columns), dtype, field, spec.parts)

    if spec.quantized:
        yield source("codes", "uint8", spec.K // 2)
        yield source("scales", "uint8", spec.K // layout.GROUP_SIZE)
        yield source("global_scale", "float32")
    else:
        yield source("weight", dtype, spec.K)
    if spec.bias:
        yield source("bias", dtype)


def _linears(config: DecoderConfig, quantized: Quantized) -> Iterator[LinearSpec]:
    yield embedding_spec(config, quantized)
    for index in range(config.num_hidden_layers):
        yield from layer_spec(config, index, quantized).linears
    head = head_spec(config, quantized)
    if head is not None:
        yield head


def parameter_sources(config: DecoderConfig, quantized: Quantized, dtype: str) -> Mapping[str, ParamSource]:
    """Say for each parameter of the model exported with the same arguments where it comes from.

    Parameters
    ----------
    config : DecoderConfig
    quantized : callable
        Says of a checkpoint module whether it is NVFP4; see :func:`quantized_modules`.
    dtype : str
        The model's dtype, of plain weights, biases and norms.
    """
    sources = [source for spec in _linears(config, quantized) for source in _linear_sources(spec, dtype)]
    sources += [
        ParamSource(f"{module}.weight", (width,), dtype, "weight", ((module, width),))
        for module, width in norms(config)
    ]
    return {source.name: source for source in sources}


def load_parameter(checkpoint: Checkpoint, source: ParamSource, buffers: Buffers | None = None) -> np.ndarray:
    """Read one parameter.

    Returns
    -------
    numpy.ndarray
        ``source.shape`` in ``source.dtype``, contiguous: the mapped file itself where nothing has to be changed,
        else in ``buffers`` if there are any, and then valid until the next parameter is loaded there.

    Raises
    ------
    CheckpointError
        If a tensor is missing, has another shape than the configuration asks for, is no floating-point
        tensor, or holds values that are not finite in the model's dtype.
    """
    plain = source.field in ("weight", "bias")
    if plain:
        parts = [_plain(checkpoint, source, module, rows) for module, rows in source.modules]
    else:
        tensors = load_nvfp4(checkpoint, source)
        if source.field == "global_scale":
            parts = [np.full(t.shape[0], t.global_scale, np.float32) for t in tensors]
        else:
            parts = [t.codes if source.field == "codes" else t.scales for t in tensors]
    whole = len(parts) == 1 and parts[0].dtype == source.dtype
    out = parts[0] if whole else (buffers or Buffers()).array("parameter", source.shape, source.dtype)
    row = 0
    for part, (module, rows) in zip(parts, source.modules, strict=True):
        cast, stored = out[row : row + rows].reshape(-1), part.reshape(-1)
        row += rows
        for begin in range(0, part.size, CHUNK):  # pieces that stay in the caches
            piece = slice(begin, begin + CHUNK)
            if not whole:
                with np.errstate(over="ignore"):
                    cast[piece] = stored[piece]
            if plain and not is_finite(cast[piece]):
                what = "in " + source.dtype if is_finite(stored[piece]) else "numbers"
                name = f"{module}.{source.field}"
                raise CheckpointError(
                    f"{checkpoint.tensor_info(name).file}: tensor {name}: found values that are not "
                    f"finite {what}; choose a wider model dtype or repair the checkpoint"
                )
    return out


def load_nvfp4(checkpoint: Checkpoint, source: ParamSource) -> list[NVFP4Tensor]:
    """Return the NVFP4 weights, mapped, that a quantized parameter is made of.

    Raises
    ------
    CheckpointError
        As `load_parameter`.
    """
    tensors = [checkpoint.nvfp4(module) for module, _ in source.modules]
    for tensor, (module, rows) in zip(tensors, source.modules, strict=True):
        array = tensor.codes if source.field == "codes" else tensor.scales
        expected = (rows, *(source.shape[1:] if source.field != "global_scale" else array.shape[1:]))
        if array.shape != expected:
            raise CheckpointError(
                f"{checkpoint.path}: module {module}: found {source.field} of shape {list(array.shape)}, "
                f"expected {list(expected)} by config.json"
            )
    return tensors


def _plain(checkpoint: Checkpoint, source: ParamSource, module: str, rows: int) -> np.ndarray:
    name = f"{module}.{source.field}"
    info = _check_shape(checkpoint, name, (rows, *source.shape[1:]))
    tensor = checkpoint.tensor(name)
    if tensor.dtype not in ("float32", "float16", "bfloat16"):
        raise CheckpointError(f"{info.file}: tensor {name}: found {info.dtype}, expected BF16, F16 or F32")
    return tensor


def _check_shape(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> TensorInfo:
    info = checkpoint.tensor_info(name)
    if tuple(info.shape) != shape:
        raise CheckpointError(
            f"{info.file}: tensor {name}: found shape {list(info.shape)}, expected {list(shape)} by config"
        )
    return info


def check_tensors(checkpoint: Checkpoint, config: DecoderConfig) -> None:
    """Check that the checkpoint has the tensors of the model, in their shapes, and no others.

    Ignored are RoPE frequencies (computed from the config), scales of a quantized KV cache, and a copy of the
    embedding as the head of a tied model.

    Raises
    ------
    CheckpointError
        Names the first missing or surplus tensor and their number, a tensor whose shape contradicts the
        config, or says that a tied head differs.
    """
    quantized = quantized_modules(checkpoint)
    sources = parameter_sources(config, quantized, "float32").values()
    names = set(checkpoint.names())
    plain = {
        f"{module}.{source.field}"
        for source in sources
        if source.field in ("weight", "bias")
        for module, _ in source.modules
    }
    packed = {module for source in sources if source.field == "codes" for module, _ in source.modules}
    missing = sorted(plain - names)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(
            f"{checkpoint.path}: tensor {missing[0]}{more}: found no such tensor, expected it for this "
            f"{config.model_type} config; the checkpoint is incomplete"
        )
    tied = f"{HEAD}.weight"
    if config.tie_word_embeddings and tied in names and tied not in plain:
        _check_tied(checkpoint, tied)
        plain.add(tied)
    extra = sorted(name for name in names - plain if not _expected(name, packed))
    if extra:
        more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
        raise CheckpointError(
            f"{checkpoint.path}: tensor {extra[0]}{more}: found a tensor that a {config.model_type} model "
            f"with this config has no use for; remove it or correct config.json"
        )
    layers = checkpoint.layers(read_data=False)
    for source in sources:
        for module, rows in source.modules:
            if source.field in ("weight", "bias"):
                _check_shape(checkpoint, f"{module}.{source.field}", (rows, *source.shape[1:]))
            elif source.field == "codes" and layers[module].shape != (rows, 2 * source.shape[1]):
                raise CheckpointError(
                    f"{checkpoint.path}: module {module}: found an NVFP4 weight "
                    f"{list(layers[module].shape)}, expected {[rows, 2 * source.shape[1]]} by config.json"
                )


def _expected(name: str, packed: set[str]) -> bool:
    module, _, suffix = name.rpartition(".")
    # what else a packed module may hold is the reader's to check; its bias is a plain tensor
    if module in packed and suffix != "bias":
        return True
    return suffix in KV_SCALES or name.endswith("rotary_emb.inv_freq")


def _check_tied(checkpoint: Checkpoint, head: str) -> None:
    embedding = f"{EMBEDDING}.weight"
    same = embedding in checkpoint.names()
    if same:
        first, second = checkpoint.tensor(head), checkpoint.tensor(embedding)
        same = first.shape == second.shape and all(
            np.array_equal(a, b) for a, b in zip(row_blocks(first), row_blocks(second), strict=True)
        )
        checkpoint.release(head)
        checkpoint.release(embedding)
    if not same:
        raise CheckpointError(
            f"{checkpoint.path}: tensor {head}: found values that differ from {embedding}, expected a copy "
            f"as config.json says tie_word_embeddings; set it to false if the head is meant to be its own"
        )
