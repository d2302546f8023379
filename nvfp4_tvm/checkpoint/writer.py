"""A streaming safetensors writer: declare names, dtypes and shapes, then write the tensors one at a time.

``safetensors.numpy.save_file`` wants all tensors in memory; this needs one. With a journal, what a killed process
had written is not written again.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from numpy.typing import DTypeLike

from nvfp4_tvm.checkpoint.journal import Journal
from nvfp4_tvm.checkpoint.storage import MAX_HEADER_BYTES, MAX_NAME, NUMPY_DTYPES
from nvfp4_tvm.errors import OutputError, ShapeError
from nvfp4_tvm.integrity import array_digest, file_digest, sync

_SPELLING = {dtype: spelling for spelling, dtype in NUMPY_DTYPES.items()}
# The size Hugging Face's save_pretrained shards at, in its decimal GB.
DEFAULT_SHARD_BYTES = 5_000_000_000
#: How names of files end that are not complete yet.
UNFINISHED = ".partial"


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
    journal : Journal, optional
        Continue what it tells of, and note there what is written. Unfinished files are then kept on a failure.

    Attributes
    ----------
    digests : dict of str to str
        SHA-256 of the tensors written so far, in hexadecimal.
    nbytes : int
        Bytes of all files, headers included.

    Raises
    ------
    ShapeError
        If a dtype has no safetensors spelling, or a shape is negative.
    OutputError
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
        journal: Journal | None = None,
    ):
        self.folder = Path(folder)
        self._specs = {name: _spec(name, dtype, shape) for name, (dtype, shape) in specs.items()}
        self._journal = journal
        self.digests: dict[str, str] = {}
        shards = self._plan(max_shard_bytes)
        self.files = [f"{stem}.safetensors"]
        if len(shards) > 1:
            self.files = [f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
        self._index = self.folder / f"{stem}.safetensors.index.json"
        self._place: dict[str, tuple[int, int]] = {}  # name to shard and position
        self._streams: list[BinaryIO] = []
        self.nbytes = 0
        self._hasher = ThreadPoolExecutor(1)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._check_space()
            for i, names in enumerate(shards):
                self._create(i, names, dict(metadata or {}))
        except OSError as e:
            self._discard()
            raise OutputError(f"{self.folder}: cannot be written: {e.strerror or e}") from None
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

    def _check_space(self) -> None:
        """Refuse a disk that is too small before the work, not after it."""
        needed = sum(math.prod(shape) * dtype.itemsize for dtype, shape in self._specs.values())
        here = sum(file.stat().st_blocks * 512 for file in self.folder.glob(f".*{UNFINISHED}"))
        free = shutil.disk_usage(self.folder).free
        if needed > free + here:
            raise OutputError(
                f"{self.folder}: found {free} bytes free on its disk, expected at least {needed - here}: make "
                "room or choose another disk"
            )

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
        head, size = len(text).to_bytes(8, "little") + text, 8 + len(text) + offset
        partial = self._partial(shard)
        kept = self._journal is not None and self._journal.resumed and partial.is_file()
        # unbuffered: tensors are written whole, and a killed process leaves nothing behind in a buffer
        stream = partial.open("r+b" if kept else "w+b", buffering=0)
        self._streams.append(stream)
        if not kept or stream.read(len(head)) != head or partial.stat().st_size != size:
            stream.seek(0)
            stream.truncate(0)
            _write_all(stream, memoryview(head))
            stream.truncate(size)  # reserved, so that tensors can come in any order
            for name in names:
                if self._journal is not None:
                    self._journal.done.pop(name, None)
        self._place.update({name: (shard, len(head) + offsets[name]) for name in names})
        self.nbytes += size

    def _partial(self, shard: int) -> Path:
        return self.folder / f".{self.files[shard]}{UNFINISHED}"

    def resumed(self, name: str) -> bool:
        """Return whether an earlier process wrote a declared tensor, which is then read and compared.

        Raises
        ------
        OutputError
            If the file cannot be read.
        """
        expected = None if self._journal is None else self._journal.done.get(name)
        if expected is None or name not in self._place:
            return False
        dtype, shape = self._specs[name]
        shard, position = self._place[name]
        try:
            found = file_digest(self._partial(shard), position, math.prod(shape) * dtype.itemsize)
        except OSError as e:
            raise OutputError(f"{self._partial(shard)}: cannot be read: {e.strerror or e}") from None
        if found != expected:
            return False
        self.digests[name] = expected
        return True

    def write(self, name: str, array: np.ndarray) -> None:
        """Write one declared tensor.

        Raises
        ------
        ShapeError
            If `name` was not declared, was written before, or `array` has another dtype or shape than
            declared.
        OutputError
            If the file cannot be written, as when the disk is full.
        """
        if name not in self._specs:
            raise ShapeError(
                f"{self.folder}: tensor {name} was not declared, expected one of the declared names"
            )
        if name in self.digests:
            raise ShapeError(f"{self.folder}: tensor {name} was written before, expected each tensor once")
        dtype, shape = self._specs[name]
        if array.dtype != dtype or array.shape != shape:
            raise ShapeError(
                f"{self.folder}: tensor {name}: found {array.dtype} {array.shape}, expected {dtype} "
                f"{shape} as declared"
            )
        shard, position = self._place[name]
        stream = self._streams[shard]
        array = np.ascontiguousarray(array)
        digest = self._hasher.submit(array_digest, array)
        try:
            stream.seek(position)
            if array.size:
                _write_all(stream, array.reshape(-1).view(np.uint8).data)
            self.digests[name] = digest.result()
            if self._journal is not None:
                self._journal.add(name, self.digests[name])
        except OSError as e:
            raise OutputError(
                f"{self.folder / self.files[shard]}: cannot be written: {e.strerror or e}"
            ) from None

    def close(self) -> None:
        """Finish the files.

        Raises
        ------
        ShapeError
            If a declared tensor was not written; nothing is kept then.
        """
        missing = [name for name in self._specs if name not in self.digests]
        if missing:
            self._discard()
            raise ShapeError(
                f"{self.folder}: {len(missing)} declared tensors were not written, {missing[0]} first: "
                "expected all"
            )
        try:
            for stream in self._streams:
                os.fsync(stream.fileno())
                stream.close()
            for i, file in enumerate(self.files):
                os.replace(self._partial(i), self.folder / file)
            if len(self.files) > 1:
                total = sum(math.prod(shape) * dtype.itemsize for dtype, shape in self._specs.values())
                weight_map = {name: self.files[self._place[name][0]] for name in self._specs}
                index = {"metadata": {"total_size": total}, "weight_map": weight_map}
                self._index.write_text(json.dumps(index, indent=2, ensure_ascii=False) + "\n")
                sync([self._index])
            sync([self.folder])
        except OSError as e:
            self._discard()
            raise OutputError(f"{self.folder}: cannot be written: {e.strerror or e}") from None

        self._hasher.shutdown()

    def _discard(self) -> None:
        self._hasher.shutdown()
        for i, stream in enumerate(self._streams):
            stream.close()
            if self._journal is None:
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


def _write_all(stream: BinaryIO, data: memoryview) -> None:
    """Write to an unbuffered file, which may take less than it is given."""
    while data:
        data = data[stream.write(data) :]


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
