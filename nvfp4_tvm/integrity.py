"""Checksums of what is written and read back: SHA-256, for which processors have instructions."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from nvfp4_tvm.checkpoint.storage import SafetensorsFile
from nvfp4_tvm.runtime.threads import cores

#: Bytes a read: large enough that a call costs nothing beside its bytes, small enough not to matter.
_PIECE = 4 << 20
_ENDLESS = 1 << 62


def array_digest(array: np.ndarray) -> str:
    """Return the SHA-256 of a contiguous array's bytes, in hexadecimal."""
    flat = array.reshape(-1)
    return hashlib.sha256(flat.view(np.uint8).data if flat.size else b"").hexdigest()


def file_digest(
    path: Path, begin: int = 0, size: int | None = None, count: Callable[[int], None] | None = None
) -> str:
    """Return the SHA-256 of a file, or of ``size`` bytes from ``begin`` on, in hexadecimal.

    ``count`` is told the bytes of each piece read. A file that ends before has another digest.
    """
    digest = hashlib.sha256()
    piece = memoryview(bytearray(_PIECE))
    with path.open("rb", buffering=0) as file:
        file.seek(begin)
        left = _ENDLESS if size is None else size
        while left and (read := file.readinto(piece[: min(left, _PIECE)])):
            digest.update(piece[:read])
            left -= read
            if count is not None:
                count(read)
    return digest.hexdigest()


def content_digest(path: Path, known: Mapping[str, str] | None = None) -> str:
    """Return a digest of a file's content; of a safetensors file, of its header and its tensors' SHA-256.

    Tensors whose digests are ``known``, because they have just been written, are not read for it.

    Raises
    ------
    CheckpointError
        If a file called so is no safetensors file.
    """
    if path.suffix != ".safetensors":
        return file_digest(path)
    infos = sorted(SafetensorsFile(path).tensors.values(), key=lambda info: info.begin)
    begin = min((info.begin for info in infos), default=None)
    digest = hashlib.sha256(file_digest(path, 0, begin).encode())
    for info in infos:
        found = (known or {}).get(info.name) or file_digest(path, info.begin, info.nbytes)
        digest.update(found.encode())
    return digest.hexdigest()


def digests(tasks: Mapping[str, Callable[[], str]]) -> dict[str, str]:
    """Compute digests by name, on all cores: hashing lets go of the interpreter lock."""
    with ThreadPoolExecutor(cores()) as pool:
        futures = {name: pool.submit(task) for name, task in tasks.items()}
        return {name: future.result() for name, future in futures.items()}


def sync(paths: Iterable[Path]) -> None:
    """Make files and folders survive a loss of power."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
