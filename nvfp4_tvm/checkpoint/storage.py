"""Files of a checkpoint folder: JSON, safetensors (single or sharded), read without copying and without
trust.

The safetensors library checks a file's header (bounds, overlaps, sizes); this module checks again what it
relies on, and maps the file, because the library's NumPy interface has no bfloat16 or float8.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from nvfp4_tvm.errors import CheckpointError, UnsupportedFormatError, VanishedError

# Far above what exists (a 480-expert model's index is 15 MB), far below what hurts.
MAX_JSON_BYTES = 64 << 20
# The safetensors format's own limit on the header.
MAX_HEADER_BYTES = 100_000_000
MAX_NAME = 512

# Spelling of dtypes in safetensors headers (its format documentation); the rest is refused when read.
NUMPY_DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "F32": np.dtype(np.float32),
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F64": np.dtype(np.float64),
}


@dataclass(frozen=True)
class TensorInfo:
    """What a safetensors header says about one tensor.

    Attributes
    ----------
    name : str
    dtype : str
        The format's spelling: "BF16", "F8_E4M3", "U8", ...
    shape : tuple of int
    file : Path
    begin, end : int
        Bytes within the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return self.end - self.begin

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


@dataclass
class SafetensorsFile:
    """One safetensors file: the header is read and checked at once, the data mapped when first asked for.

    Parameters
    ----------
    path : Path

    Raises
    ------
    CheckpointError
        If the file is missing, truncated or its header is malformed.
    """

    path: Path
    tensors: dict[str, TensorInfo] = field(init=False)
    metadata: dict[str, str] = field(init=False)
    _map: mmap.mmap | None = field(init=False, default=None, repr=False)

    def __post_init__(self) -> None:
        header, data_begin, size = self._read_header()
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict):
            raise CheckpointError(
                f"{self.path}: found __metadata__ of type {type(metadata).__name__}, expected an object of "
                "strings"
            )
        self.metadata = metadata
        self.tensors = {
            name: _tensor_info(name, entry, self.path, data_begin, size) for name, entry in header.items()
        }

    def _read_header(self) -> tuple[dict[str, Any], int, int]:
        try:
            size = self.path.stat().st_size
            with self.path.open("rb") as f:
                length = int.from_bytes(f.read(8), "little")
                if size < 8 or length > size - 8 or length > MAX_HEADER_BYTES:
                    raise CheckpointError(
                        f"{self.path}: found a header of {length} bytes in a file of {size} bytes, "
                        "expected it to fit: the file is truncated or not safetensors; download it again"
                    )
                text = f.read(length)
            # The library refuses overlaps, gaps, wrong sizes, trailing bytes.
            with safetensors.safe_open(str(self.path), framework="numpy"):
                pass
        except OSError as e:
            raise CheckpointError(f"{self.path}: cannot be read: {e.strerror or e}") from None
        except safetensors.SafetensorError as e:
            raise CheckpointError(
                f"{self.path}: found a malformed safetensors file ({_one_line(e)}): it is truncated or "
                "corrupt; download it again"
            ) from None
        return parse_json(text, self.path), 8 + length, size

    def array(self, name: str) -> np.ndarray:
        """Return a tensor as a read-only view of the mapped file (a copy if it lies unaligned there).

        Raises
        ------
        UnsupportedFormatError
            If the tensor's dtype has no NumPy counterpart here.
        VanishedError
            If the file is gone or shorter than it was.
        """
        info = self.tensors[name]
        dtype = NUMPY_DTYPES.get(info.dtype)
        if dtype is None:
            raise UnsupportedFormatError(
                f"{self.path}: tensor {name} has dtype {info.dtype}, expected one of "
                f"{', '.join(NUMPY_DTYPES)}"
            )
        if info.nbytes == 0:
            return np.empty(info.shape, dtype)
        raw = np.frombuffer(self._mapped(info), np.uint8, info.nbytes, info.begin)
        if info.begin % dtype.itemsize:
            raw = raw.copy()
            raw.flags.writeable = False
        return raw.view(dtype).reshape(info.shape)

    def _mapped(self, info: TensorInfo) -> mmap.mmap:
        """Map the file. Reading a page behind its end would kill the process, so its size is checked each time."""
        try:
            with self.path.open("rb") as f:
                if os.fstat(f.fileno()).st_size < info.end:
                    raise VanishedError(f"{self.path}: the file became shorter while it was read")
                if self._map is None:
                    self._map = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as e:
            raise VanishedError(f"{self.path}: cannot be read any more: {e.strerror or e}") from None
        if len(self._map) < info.end:
            raise VanishedError(f"{self.path}: the file became shorter while it was open")
        return self._map

    def prefetch(self, name: str) -> None:
        """Let the system read a tensor from the disk meanwhile; it will be asked for soon."""
        info = self.tensors[name]
        begin = info.begin // mmap.PAGESIZE * mmap.PAGESIZE
        if info.nbytes and hasattr(mmap, "MADV_WILLNEED"):
            self._mapped(info).madvise(mmap.MADV_WILLNEED, begin, info.end - begin)

    def release(self, name: str) -> None:
        """Drop a tensor's pages from this process's memory; views stay valid and read the file again."""
        info = self.tensors[name]
        begin = -(-info.begin // mmap.PAGESIZE) * mmap.PAGESIZE
        end = info.end // mmap.PAGESIZE * mmap.PAGESIZE
        if self._map is not None and end > begin and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, begin, end - begin)


def _tensor_info(name: str, entry: Any, path: Path, data_begin: int, size: int) -> TensorInfo:
    def wrong(found: str, expected: str) -> CheckpointError:
        return CheckpointError(
            f"{path}: tensor {name[:MAX_NAME]!r}: found {found}, expected {expected}: the file is corrupt"
        )

    if len(name) > MAX_NAME:
        raise wrong(f"a name of {len(name)} characters", f"at most {MAX_NAME}")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise wrong("a malformed entry", "dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str):
        raise wrong(f"dtype {dtype!r:.40}", "a string")
    if not _naturals(shape) or len(shape) > 8:
        raise wrong(f"shape {shape!r:.80}", "a list of at most 8 sizes")
    if not _naturals(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= size - data_begin:
        raise wrong(
            f"data_offsets {offsets!r:.80}", f"two within the file's {size - data_begin} bytes of data"
        )
    if dtype in NUMPY_DTYPES:
        want = math.prod(shape) * NUMPY_DTYPES[dtype].itemsize
        if offsets[1] - offsets[0] != want:
            raise wrong(f"{offsets[1] - offsets[0]} bytes", f"{want} for {dtype} {shape}")
    return TensorInfo(name, dtype, tuple(shape), path, data_begin + offsets[0], data_begin + offsets[1])


def _naturals(x: Any) -> bool:
    return isinstance(x, list) and all(type(i) is int and 0 <= i < 1 << 62 for i in x)


def parse_json(text: bytes, path: Path) -> dict[str, Any]:
    """Parse a JSON object, refusing repeated keys, absurd nesting and anything that is not an object.

    Raises
    ------
    CheckpointError
        Naming `path`.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            twice = Counter(k for k, _ in pairs).most_common(1)[0][0]
            raise CheckpointError(f"{path}: found the key {twice[:MAX_NAME]!r} twice, expected it once")
        return result

    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except CheckpointError:
        raise
    except RecursionError:
        raise CheckpointError(
            f"{path}: found JSON nested too deeply, expected a plain configuration"
        ) from None
    except ValueError as e:
        raise CheckpointError(
            f"{path}: found invalid JSON ({_one_line(e)}): the file is truncated or corrupt; download it "
            "again"
        ) from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: found a JSON {type(value).__name__}, expected an object")
    return value


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file of at most `MAX_JSON_BYTES`.

    Raises
    ------
    CheckpointError
        If it is missing, too large or malformed.
    """
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise CheckpointError(f"{path}: found {size} bytes, expected at most {MAX_JSON_BYTES} of JSON")
        return parse_json(path.read_bytes(), path)
    except OSError as e:
        raise CheckpointError(f"{path}: cannot be read: {e.strerror or e}") from None


def open_shards(folder: Path, stem: str = "model") -> dict[str, SafetensorsFile]:
    """Find the safetensors files of a folder and map each tensor's name to its file.

    As transformers does, ``{stem}.safetensors`` is preferred, then ``{stem}.safetensors.index.json``, then a
    lone ``*.safetensors``.

    Raises
    ------
    CheckpointError
        If there is none, or index and shards disagree.
    """
    index = folder / f"{stem}.safetensors.index.json"
    if (folder / f"{stem}.safetensors").is_file():
        paths = [folder / f"{stem}.safetensors"]
    elif index.is_file():
        return _open_indexed(folder, index)
    else:
        paths = sorted(folder.glob("*.safetensors"))
    if len(paths) != 1:
        if paths:
            raise CheckpointError(
                f"{folder}: found {len(paths)} safetensors files without {index.name}: copy the index from "
                "where the checkpoint came from"
            )
        other = next(
            iter(sorted([*folder.glob("*.bin"), *folder.glob("*.gguf"), *folder.glob("*.pt")])), None
        )
        found = f"found {other.name}" if other else "found no weights"
        raise CheckpointError(f"{folder}: {found}, expected model.safetensors or its shards")
    file = SafetensorsFile(paths[0])
    return dict.fromkeys(file.tensors, file)


def _open_indexed(folder: Path, index: Path) -> dict[str, SafetensorsFile]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise CheckpointError(
            f"{index}: found no weight_map of strings, expected tensor names and their files"
        )
    files: dict[str, SafetensorsFile] = {}
    for shard in sorted(set(weight_map.values())):
        # Lexical: a file itself may be a link, as in the download cache of huggingface_hub.
        parts = PurePosixPath(shard)
        if (
            parts.is_absolute()
            or PureWindowsPath(shard).drive
            or ".." in parts.parts
            or set(shard) & {"\\", "\0"}
        ):
            raise CheckpointError(
                f"{index}: found the file name {shard!r:.200}, expected one inside the folder"
            )
        if not (folder / shard).is_file():
            raise CheckpointError(f"{index}: names {shard!r:.200}, which is missing: download this shard")
        files[shard] = SafetensorsFile(folder / shard)
    owner: dict[str, SafetensorsFile] = {}
    for shard, file in files.items():
        for name in file.tensors:
            if name in owner:
                raise CheckpointError(
                    f"{file.path}: tensor {name} is also in {owner[name].path.name}, expected it in one shard"
                )
            if weight_map.get(name) != shard:
                raise CheckpointError(
                    f"{file.path}: holds tensor {name}, which the index puts in "
                    f"{weight_map.get(name)!r:.200}: shards and index come from different checkpoints"
                )
            owner[name] = file
    for name, shard in weight_map.items():
        if name not in owner:
            raise CheckpointError(
                f"{index}: puts tensor {name[:MAX_NAME]!r} in {shard}, which does not hold it"
            )
    return owner


def _one_line(e: Exception) -> str:
    return " ".join(str(e).split())[:200]
