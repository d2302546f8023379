"""Quantize an unquantized Hugging Face checkpoint to NVFP4, one tensor at a time."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import ml_dtypes
import numpy as np

import nvfp4_tvm
from nvfp4_tvm import numerics
from nvfp4_tvm.buffers import Buffers
from nvfp4_tvm.checkpoint.base import PLAIN_FORMATS, open_checkpoint
from nvfp4_tvm.checkpoint.patterns import Patterns, role_of
from nvfp4_tvm.checkpoint.reader import Checkpoint
from nvfp4_tvm.checkpoint.storage import NUMPY_DTYPES, TensorInfo
from nvfp4_tvm.checkpoint.writer import DEFAULT_SHARD_BYTES, SafetensorsWriter
from nvfp4_tvm.errors import CheckpointError, NVFP4Error, ShapeError
from nvfp4_tvm.numerics import GROUP_SIZE, Arithmetic, Method
from nvfp4_tvm.output_folder import output_folder, output_key
from nvfp4_tvm.quantize_config import OutputFormat, copy_files, write_configs
from nvfp4_tvm.quantizing import quantize
from nvfp4_tvm.shared_amax import SharedAmax

logger = logging.getLogger(__name__)

# A linear layer of a decoder block: "model.layers.0.mlp.up_proj", "transformer.h.0.attn.c_attn".
_IN_BLOCK = re.compile(r"(?:^|.*\.)(?:layers|h|blocks)\.\d+\.")
_NOT_DECODER = re.compile(r"(?:^|\.)(?:vision|visual|audio|encoder)")


@dataclass(frozen=True)
class QuantizeSummary:
    """What `quantize_checkpoint` did.

    Attributes
    ----------
    format, method : str
        As asked for.
    layers : int
        Number of quantized layers.
    kept : tuple of str
        Linear layers and embeddings that stay as they were.
    bytes_read, bytes_written : int
        Of weight files.
    seconds : float
    """

    format: str
    method: str
    layers: int
    kept: tuple[str, ...]
    bytes_read: int
    bytes_written: int
    seconds: float

    @property
    def mb_per_s(self) -> float:
        """Weights read per second, in 10^6 bytes."""
        return self.bytes_read / 1e6 / max(self.seconds, 1e-9)


@dataclass(frozen=True)
class _Naming:
    """How a format names and stores a quantized weight."""

    codes: str
    scales: str
    global_scale: str
    global_shape: tuple[int, ...]
    arithmetic: Arithmetic


_NAMING: dict[str, _Naming] = {
    "compressed-tensors": _Naming(
        "weight_packed", "weight_scale", "weight_global_scale", (1,), "compressed-tensors"
    ),
    "modelopt": _Naming("weight", "weight_scale", "weight_scale_2", (), "modelopt"),
}


def quantize_checkpoint(
    src: str | Path,
    dst: str | Path,
    *,
    format: OutputFormat = "compressed-tensors",
    method: Method = "amax",
    exclude: Sequence[str] = (),
    share_global_scales: bool = True,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    progress: Callable[[int, int, str], None] | None = None,
) -> QuantizeSummary:
    """Write an NVFP4 checkpoint of a bf16, fp16 or fp32 one.

    Quantized are the weights of all linear layers inside decoder blocks, weights only (no activation scales).
    lm_head, embeddings, norms, biases and routers stay as they are, as with the libraries' own defaults.
    Peak memory is bounded by three times the largest tensor and one GiB, mapped files included.

    Parameters
    ----------
    src, dst : str or Path
        Checkpoint folders; `dst` must not exist, or be empty. Tokenizer and other small files are copied.
    format : {"compressed-tensors", "modelopt"}
        Tensor names, config, and the order of float32 operations (see `numerics`) of this library.
    method : {"amax", "four_over_six"}
        See `numerics.quantize`.
    exclude : sequence of str
        Layers to leave unquantized besides the defaults: module names, shell wildcards (``*.layers.0.*``), or
        ``re:`` and a regular expression.
    share_global_scales : bool
        Give q, k, v and gate, up one global scale each, from the largest magnitude of all parts. On by
        default: serving engines that fuse these layers (vLLM) keep one scale for the whole, and lose accuracy
        when they differ. Off, each layer has the scale that its own weights ask for.
    max_shard_bytes : int
        Split the weights into files of at most about this size.
    progress : callable, optional
        Called as ``progress(bytes_done, bytes_total, tensor_name)`` after each tensor of the source.

    Returns
    -------
    QuantizeSummary

    Raises
    ------
    CheckpointError
        If `src` cannot be read, is quantized already, has nothing to quantize, or `dst` is not empty.
    NVFP4Error
        If a weight cannot be quantized (NaN, infinite, all zeros, K no multiple of 16); the message names it.
        `dst` is then left without weights.
    """
    start = time.perf_counter()
    for what, value, choices in (("format", format, OutputFormat), ("method", method, Method)):
        if value not in get_args(choices):
            raise NVFP4Error(
                f"found {what} {value!r}, expected one of {', '.join(map(repr, get_args(choices)))}"
            )
    src, dst = Path(src), Path(dst)
    checkpoint = open_checkpoint(src)
    if checkpoint.format != "none":
        raise CheckpointError(
            f"{src}: found {checkpoint.format} quantization, expected an unquantized checkpoint"
        )
    if dst.exists() and (not dst.is_dir() or any(dst.iterdir())):
        raise CheckpointError(
            f"{dst}: found {'a file' if dst.is_file() else 'files in it'}, expected an empty folder"
        )
    infos = sorted((checkpoint.tensor_info(n) for n in checkpoint.names()), key=lambda t: (t.file, t.begin))
    chosen, kept = _choose(checkpoint, exclude)
    weights = {module: f"{module}.weight" for module in chosen}
    amax = SharedAmax(weights, checkpoint.tensor, checkpoint.release, share=share_global_scales)

    naming = _NAMING[format]
    specs: dict[str, tuple[Any, tuple[int, ...]]] = {}
    for info in infos:
        module, _, suffix = info.name.rpartition(".")
        if module in chosen and suffix == "weight":
            N, K = info.shape
            specs[f"{module}.{naming.codes}"] = (np.uint8, (N, K // 2))
            specs[f"{module}.{naming.scales}"] = (ml_dtypes.float8_e4m3fn, (N, K // GROUP_SIZE))
            specs[f"{module}.{naming.global_scale}"] = (np.float32, naming.global_shape)
        else:
            specs[info.name] = (_numpy_dtype(info), info.shape)

    total, done = sum(t.nbytes for t in infos), 0
    step = _Quantizer(checkpoint, amax, naming, method)
    key = output_key(
        source=checkpoint.fingerprint(),
        specs={name: (str(np.dtype(dtype)), shape) for name, (dtype, shape) in specs.items()},
        options=(format, method, sorted(kept), share_global_scales, max_shard_bytes),
        package=nvfp4_tvm.__version__,
    )
    with output_folder(dst, key) as work:
        with SafetensorsWriter(
            work.path, "model", specs, {"format": "pt"}, max_shard_bytes, work.journal
        ) as writer:
            for info, following in zip(infos, [*infos[1:], None], strict=True):
                start_tensor = time.perf_counter()
                if following is not None:
                    checkpoint.prefetch(following.name)
                module, _, suffix = info.name.rpartition(".")
                if module in chosen and suffix == "weight":
                    step.write(module, writer)
                elif not writer.resumed(info.name):
                    writer.write(info.name, checkpoint.tensor(info.name))
                checkpoint.release(info.name)
                done += info.nbytes
                seconds = time.perf_counter() - start_tensor
                logger.info(
                    "%s: %d bytes in %.3f s, %.3g GB/s",
                    info.name,
                    info.nbytes,
                    seconds,
                    info.nbytes / seconds / 1e9,
                )
                if progress is not None:
                    progress(done, total, info.name)
        write_configs(checkpoint, work.path, format, sorted(kept))
        copy_files(src, work.path)
    return QuantizeSummary(
        format, method, len(chosen), tuple(sorted(kept)), total, writer.nbytes, time.perf_counter() - start
    )


def _numpy_dtype(info: TensorInfo) -> np.dtype:
    if info.dtype not in NUMPY_DTYPES:
        raise CheckpointError(
            f"{info.file}: tensor {info.name}: found {info}, expected one of {', '.join(NUMPY_DTYPES)}"
        )
    return NUMPY_DTYPES[info.dtype]


def _choose(checkpoint: Checkpoint, exclude: Sequence[str]) -> tuple[set[str], set[str]]:
    """Return the modules to quantize, and the other modules with a 2-D weight."""
    patterns = [Patterns([p], "exclude", wildcards=True) for p in exclude]
    used = [False] * len(patterns)
    chosen, kept = set(), set()
    for module in checkpoint.module_names():
        name = f"{module}.weight"
        info = checkpoint.tensor_info(name)
        matches = [p.matches(module) for p in patterns]
        used = [u or m for u, m in zip(used, matches, strict=True)]
        if len(info.shape) != 2:
            continue
        in_decoder = _IN_BLOCK.match(module) and not _NOT_DECODER.search(module)
        if any(matches) or not in_decoder or role_of(module) != "linear":
            kept.add(module)
            continue
        if info.dtype not in PLAIN_FORMATS:
            raise CheckpointError(
                f"{info.file}: tensor {name}: found {info}, expected BF16, F16 or F32 weights"
            )
        if info.shape[1] % GROUP_SIZE or 0 in info.shape:
            raise ShapeError(
                f"{info.file}: tensor {name}: found K = {info.shape[1]}, expected a multiple of "
                f"{GROUP_SIZE}: exclude this layer"
            )
        chosen.add(module)
    for pattern, hit in zip(exclude, used, strict=True):
        if not hit:
            raise NVFP4Error(
                f"exclude: found {pattern!r}, which names no module of {checkpoint.path}: correct it"
            )
    if not chosen:
        raise CheckpointError(
            f"{checkpoint.path}: found no linear layer to quantize, expected decoder blocks"
        )
    return chosen, kept


class _Quantizer:
    """Writes quantized weights, one at a time.

    Parameters
    ----------
    amax : SharedAmax
        Decides over global scales.
    """

    def __init__(self, checkpoint: Checkpoint, amax: SharedAmax, naming: _Naming, method: Method):
        self._checkpoint, self._amax, self._naming, self._method = checkpoint, amax, naming, method
        self._buffers = Buffers()

    def write(self, module: str, writer: SafetensorsWriter) -> None:
        """Quantize a module's weight, unless an earlier process did."""
        naming, name = self._naming, f"{module}.weight"
        names = [f"{module}.{suffix}" for suffix in (naming.codes, naming.scales, naming.global_scale)]
        missing = [each for each in names if not writer.resumed(each)]
        if not missing:
            return
        shared = self._amax(module)
        stored = numerics.global_scale_from_amax(
            shared, method=self._method, arithmetic=naming.arithmetic, name=name
        )
        weight = self._checkpoint.tensor(name)
        codes, scales = quantize(
            weight,
            shared,
            arithmetic=naming.arithmetic,
            method=self._method,
            buffers=self._buffers,
            name=name,
        )
        arrays = codes, scales.view(ml_dtypes.float8_e4m3fn), np.full(naming.global_shape, stored, np.float32)
        for each, array in zip(names, arrays, strict=True):
            if each in missing:
                writer.write(each, array)
