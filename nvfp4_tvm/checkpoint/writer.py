"""A streaming safetensors writer: declare names, dtypes and shapes, then write the tensors one at a time.

``safetensors.numpy.save_file`` wants all tensors in memory; this needs one.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from numpy.typing import DTypeLike

from nvfp4_tvm.checkpoint.storage import MAX_HEADER_BYTES, MAX_NAME, NUMPY_DTYPES
from nvfp4_tvm.errors import CheckpointError, ShapeError

_SPELLING = {dtype: spelling for spelling, dtype in NUMPY_DTYPES.items()}
# The size Hugging Face's save_pretrained shards at, in its decimal GB.
DEFAULT_SHARD_BYTES = 5_000_000_000


class SafetensorsWriter:
    """Write tensors of declared shapes into one safetensors file, or several with an index.

    One shard is called ``{stem}.safetensors``; several ``{stem}-00001-of-0000n.safetensors`` with
    ``{stem}.safetensors.index.json``, as Hugging Face names them. Files appear under their names when the
    writer is closed without an error; before that, and after a failure, nothing of them remains but what was
    there before.

    Parameters
    ----------
    folder : Path
        Created if missing.
    stem : str
        Such as "model".
    specs : mapping
        Name to (dtype, shape), in the order they shall lie in the files; within a shard the wider dtypes come
        first, so that every tensor is aligned.
    metadata : mapping of str to str, optional
        Goes into the header; Hugging Face wants ``{"format": "pt"}``.
    max_shard_bytes : int
        A tensor larger than this gets a shard of its own.

    Raises
    ------
    ShapeError
        If a dtype has no safetensors spelling, or a shape is negative.
    CheckpointError
        If the files cannot be created.

    Examples
    --------
    >>> with SafetensorsWriter(folder, "params", {"a": (np.uint32, (4, 2))}) as writer:
    ...     writer.write("a", array)
    """

    def __init__(
        self,
        folder: str | Path,
        stem: str,
        specs: Mapping[str, tuple[DTypeLike, tuple[int, ...]]],
        metadata: Mapping[str, str] | None = None,
        max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    ):
        self.folder = Path(folder)
        self._specs = {name: _spec(name, dtype, shape) for name, (dtype, shape) in specs.items()}
        self._written: set[str] = set()
        shards = self._plan(max_shard_bytes)
        self.files = [f"{stem}.safetensors"]
        if len(shards) > 1:
            self.files = [f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
        self._index = self.folder / f"{stem}.safetensors.index.json"
        self._place: dict[str, tuple[int, int]] = {}  # name to shard and position
        self._streams: list[BinaryIO] = []
        self.nbytes = 0
        """Bytes of all files, headers included."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for i, names in enumerate(shards):
                self._create(i, names, dict(metadata or {}))
        except OSError as e:
            self._discard()
            raise CheckpointError(f"{self.folder}: cannot be written: {e.strerror or e}") from None
        except BaseException:
            self._discard()
            raise

    def _plan(self, max_shard_bytes: int) -> list[list[str]]:
        shards: list[list[str]] = [[]]
        filled = 0
        for name, (dtype, shape) in self._specs.items():
            size = math.prod(shape) * dtype.itemsize
            if shards[-1] and filled + size > max_shard_bytes:
                shards.append([])
                filled = 0
            shards[-1].append(name)
            filled += size
        return [sorted(names, key=lambda n: -self._specs[n][0].itemsize) for names in shards]

    def _create(self, shard: int, names: list[str], metadata: dict[str, str]) -> None:
        header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
        offset = 0
        offsets = {}
        for name in names:
            dtype, shape = self._specs[name]
            end = offset + math.prod(shape) * dtype.itemsize
            header[name] = {"dtype": _SPELLING[dtype], "shape": list(shape), "data_offsets": [offset, end]}
            offsets[name] = offset
            offset = end
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)  # the format: the data begins at a multiple of 8
        if len(text) > MAX_HEADER_BYTES:
            raise ShapeError(
                f"{self.files[shard]}: the header of {len(names)} tensors exceeds the format's limit"
            )
        stream = self._partial(shard).open("wb")
        self._streams.append(stream)
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + offset)  # reserved, so that tensors can come in any order
        self._place.update({name: (shard, 8 + len(text) + offsets[name]) for name in names})
        self.nbytes += 8 + len(text) + offset

    def _partial(self, shard: int) -> Path:
        return self.folder / f".{self.files[shard]}.partial"

    def write(self, name: str, array: np.ndarray) -> None:
        """Write one declared tensor.

        Raises
        ------
        ShapeError
            If `name` was not declared, was written before, or `array` has another dtype or shape than
            declared.
        CheckpointError
            If the file cannot be written, as when the disk is full.
        """
        if name not in self._specs:
            raise ShapeError(
                f"{self.folder}: tensor {name} was not declared, expected one of the declared names"
            )
        if name in self._written:
            raise ShapeError(f"{self.folder}: tensor {name} was written before, expected each tensor once")
        dtype, shape = self._specs[name]
        if array.dtype != dtype or array.shape != shape:
            raise ShapeError(
                f"{self.folder}: tensor {name}: found {array.dtype} {array.shape}, expected {dtype} "
                f"{shape} as declared"
            )
        shard, position = self._place[name]
        stream = self._streams[shard]
        try:
            stream.seek(position)
            if array.size:
                stream.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        except OSError as e:
            raise CheckpointError(
                f"{self.folder / self.files[shard]}: cannot be written: {e.strerror or e}"
            ) from None
        self._written.add(name)

    def close(self) -> None:
        """Finish the files.

        Raises
        ------
        ShapeError
            If a declared tensor was not written; nothing is kept then.
        """
        missing = [name for name in self._specs if name not in self._written]
        if missing:
            self._discard()
            raise ShapeError(
                f"{self.folder}: {len(missing)} declared tensors were not written, {missing[0]} first: "
                "expected all"
            )
        try:
            for stream in self._streams:
                stream.close()
            for i, file in enumerate(self.files):
                os.replace(self._partial(i), self.folder / file)
            if len(self.files) > 1:
                total = sum(math.prod(shape) * dtype.itemsize for dtype, shape in self._specs.values())
                weight_map = {name: self.files[self._place[name][0]] for name in self._specs}
                index = {"metadata": {"total_size": total}, "weight_map": weight_map}
                self._index.write_text(json.dumps(index, indent=2, ensure_ascii=False) + "\n")
        except OSError as e:
            self._discard()
            raise CheckpointError(f"{self.folder}: cannot be written: {e.strerror or e}") from None

    def _discard(self) -> None:
        for i, stream in enumerate(self._streams):
            stream.close()
            self._partial(i).unlink(missing_ok=True)

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._discard()


def _spec(name: str, dtype: DTypeLike, shape: tuple[int, ...]) -> tuple[np.dtype, tuple[int, ...]]:
    dtype, shape = np.dtype(dtype), tuple(int(n) for n in shape)
    if dtype not in _SPELLING:
        raise ShapeError(
            f"tensor {name}: found dtype {dtype}, expected one of {', '.join(map(str, _SPELLING))}"
        )
    if not name or name == "__metadata__" or len(name) > MAX_NAME:
        raise ShapeError(f"found the tensor name {name!r:.80}, expected 1 to {MAX_NAME} characters")
    if any(n < 0 for n in shape) or len(shape) > 8:
        raise ShapeError(f"tensor {name}: found shape {shape}, expected at most 8 sizes of at least 0")
    return dtype, shape
