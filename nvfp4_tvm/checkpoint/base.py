"""The canonical NVFP4 tensor, the registry of checkpoint formats, and `open_checkpoint`.

A format says how a config marks modules as quantized and how their tensors are named; reading and checking
the tensors is the same for all formats (`reader`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike

from nvfp4_tvm import numerics
from nvfp4_tvm.checkpoint.storage import open_shards, read_json
from nvfp4_tvm.errors import CheckpointError, ShapeError
from nvfp4_tvm.numerics import GROUP_SIZE

if TYPE_CHECKING:
    from nvfp4_tvm.checkpoint.reader import Checkpoint

# How LayerInfo.format calls unquantized weights, by safetensors dtype.
PLAIN_FORMATS = {"BF16": "bf16", "F16": "fp16", "F32": "fp32"}
# KV-cache scales: this package keeps the cache in 16 bits, where they have no use.
KV_SCALES = frozenset({"k_scale", "v_scale", "q_scale", "prob_scale"})


@dataclass(frozen=True)
class NVFP4Tensor:
    """One NVFP4 weight in canonical form: ``w = e2m1(code) * e4m3(scale) * global_scale``.

    Attributes
    ----------
    name : str
        The module's name.
    codes : np.ndarray
        uint8 ``[N, K/2]``, even k in the low nibble.
    scales : np.ndarray
        uint8 ``[N, K/16]``, E4M3 bytes, neither NaN nor negative.
    global_scale : np.float32
        The multiplier, positive and finite.

    Raises
    ------
    ShapeError
        If dtypes or shapes do not fit together.
    CheckpointError
        If a block scale is NaN or negative, or the global scale not positive and finite.
    """

    name: str
    codes: np.ndarray
    scales: np.ndarray
    global_scale: np.float32

    def __post_init__(self) -> None:
        codes, scales = self.codes, self.scales
        if codes.dtype != np.uint8 or codes.ndim != 2 or scales.dtype != np.uint8 or scales.ndim != 2:
            raise ShapeError(
                f"{self.name}: found codes {codes.dtype} {codes.shape} and scales {scales.dtype} "
                f"{scales.shape}, expected uint8 [N, K/2] and uint8 [N, K/16]"
            )
        if scales.shape != (codes.shape[0], codes.shape[1] * 2 / GROUP_SIZE):
            raise ShapeError(
                f"{self.name}: found codes of shape {codes.shape} and scales of shape {scales.shape}, "
                "expected [N, K/2] and [N, K/16] with K a multiple of 16"
            )
        # 0x7F is NaN and 0x80 up are the negatives, -0 included: no quantizer writes them, and kernels that
        # read a scale as an unsigned number would turn -0 into a large one.
        if scales.size and scales.max() > 0x7E:
            row, group = np.argwhere(scales > 0x7E)[0]
            byte = int(scales[row, group])
            what = "NaN" if byte in (0x7F, 0xFF) else f"negative ({numerics.E4M3_VALUES[byte]})"
            raise CheckpointError(
                f"{self.name}: found a block scale that is {what} (byte 0x{byte:02X} at row {row}, group "
                f"{group}), expected positive E4M3 numbers: the checkpoint is corrupt"
            )
        if not (np.isfinite(self.global_scale) and self.global_scale > 0):
            raise CheckpointError(
                f"{self.name}: found the global scale {self.global_scale}, expected a positive finite "
                "number: the checkpoint is corrupt"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K): output and input features."""
        return self.codes.shape[0], self.codes.shape[1] * 2

    @property
    def nbytes(self) -> int:
        """Bytes of codes, block scales and the global scale."""
        return self.codes.nbytes + self.scales.nbytes + 4

    def dequantize(self, dtype: DTypeLike = np.float64) -> np.ndarray:
        """Return the ``[N, K]`` weights; see `numerics.dequantize` for exactness."""
        return numerics.dequantize(self.codes, self.scales, self.global_scale, dtype)


@dataclass(frozen=True)
class LayerInfo:
    """A weight-bearing module, as `inspect` lists it.

    Attributes
    ----------
    name : str
    format : str
        "nvfp4", "bf16", "fp16", "fp32", or what would be refused: "fp8", "int4", "mxfp4", ...
    shape : tuple of int
        Of the logical weight; (N, K) for NVFP4 and linear layers.
    dtype : str
        Of the stored weight, as safetensors spells it.
    nbytes : int
        Bytes on disk of all the module's tensors.
    file : str
        The file that holds the weight.
    refusal : str or None
        Why loading this module would be refused.
    """

    name: str
    format: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    file: str
    refusal: str | None = None


@dataclass(frozen=True)
class Scheme:
    """What a config says about a module.

    Attributes
    ----------
    kind : str
        "nvfp4", "plain" (unquantized), or the name of a format that this package does not run.
    certain : bool
        False where the config speaks of classes and the module's class cannot be known: its tensors decide.
    """

    kind: str
    certain: bool = True


class Format:
    """A way to store NVFP4 weights; subclasses override what differs.

    Parameters
    ----------
    config : dict
        The checkpoint's config.json.
    folder : Path
        Where further files of the format may lie.
    """

    name: str
    codes: ClassVar[str] = "weight"
    scales: ClassVar[str] = "weight_scale"
    global_scale: ClassVar[str]
    ignored: ClassVar[frozenset[str]] = frozenset()
    """Tensors of a quantized module that carry nothing a weight-only computation needs."""
    refused: ClassVar[Mapping[str, str]] = {}
    """Tensors whose presence changes the result, and what they mean."""

    def __init__(self, config: Mapping[str, Any], folder: Path):
        self.config, self.folder = config, folder

    @classmethod
    def detect(cls, config: Mapping[str, Any], folder: Path) -> bool:
        """Return whether the checkpoint is of this format."""
        raise TypeError(f"{cls.__name__} does not define detect")

    def scheme(self, module: str) -> Scheme:
        """Return what the config says about a module with a 2-D weight."""
        raise TypeError(f"{type(self).__name__} does not define scheme")

    def multiplier(self, stored: np.float32) -> np.float32:
        """Return the canonical global scale for the stored one."""
        return stored


FORMATS: list[type[Format]] = []


def register_format(cls: type[Format]) -> type[Format]:
    """Add a format to the registry; the first whose `Format.detect` is true reads a checkpoint."""
    FORMATS.append(cls)
    return cls


def quantization_config(config: Mapping[str, Any], where: Path) -> dict[str, Any] | None:
    """Return config.json's quantization_config, or None if it has none.

    Raises
    ------
    CheckpointError
        If it is not an object.
    """
    for key in ("quantization_config", "compression_config"):  # the latter: compressed-tensors before 0.6
        value = config.get(key)
        if value is not None:
            if not isinstance(value, dict):
                raise CheckpointError(f"{where}: {key}: found {type(value).__name__}, expected an object")
            return value
    return None


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a Hugging Face checkpoint folder, quantized or not.

    Parameters
    ----------
    path : str or Path
        A folder with config.json and safetensors files.

    Raises
    ------
    CheckpointError
        If a file is missing, corrupt or contradicts another. Problems of single modules are left to
        `Checkpoint.layers`, `Checkpoint.verify` and `Checkpoint.nvfp4`.
    """
    # The formats register themselves when imported; they build on this module.
    from nvfp4_tvm.checkpoint import compressed_tensors, modelopt, plain  # noqa: F401
    from nvfp4_tvm.checkpoint.reader import Checkpoint

    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: found {'a file' if folder.exists() else 'nothing'}, expected a folder"
        )
    config = read_json(folder / "config.json")
    quantization_config(config, folder / "config.json")
    form = next((f for f in FORMATS if f.detect(config, folder)), plain.Foreign)
    return Checkpoint(folder, config, form(config, folder), open_shards(folder))
