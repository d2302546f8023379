"""Compiled libraries and packed parameters of earlier compilations, by what they were made from.

They lie in ``models`` beside the compiled kernels (:mod:`nvfp4_tvm.codegen.cache`; ``NVFP4_TVM_CACHE`` names
another place, ``0`` turns both off). An entry is a folder named by the digest of everything that its files depend
on: content of the checkpoint, plan of the packing, target, options, versions, sources of this package. Files are
hard links to those of the output where the file system allows: an entry costs no room while its output exists.

Processes may share the cache: an entry appears by a rename and disappears by one. What is taken out is compared
with the digests it was put in with; a damaged entry is removed, with a warning, and made again.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import nvfp4_tvm
from nvfp4_tvm import layout
from nvfp4_tvm._pins import FFI_VERSION, TVM_VERSION
from nvfp4_tvm.checkpoint.reader import Checkpoint
from nvfp4_tvm.checkpoint.storage import read_json
from nvfp4_tvm.codegen.cache import cache_folder
from nvfp4_tvm.errors import NVFP4Error
from nvfp4_tvm.integrity import content_digest, digests, file_digest
from nvfp4_tvm.output_folder import output_key

logger = logging.getLogger(__name__)

Kind = Literal["library", "parameters"]
LIMIT_VARIABLE = "NVFP4_TVM_CACHE_BYTES"
#: Enough for the parameters of a model of 70 billion weights (39 GB), and one of 8.
DEFAULT_LIMIT = 48 << 30
_META, _TEMPORARY, _KNOWN = "entry.json", ".new-", "digests.json"
#: Checkpoint files whose digests are remembered.
_MAX_KNOWN = 10_000
#: A file changed so recently may change again within the resolution of its time.
_SETTLED_SECONDS = 2.0
#: A temporary folder as old as this belongs to a process that died.
_ABANDONED_SECONDS = 24 * 3600.0


@cache
def versions() -> dict[str, Any]:
    """Return what of this installation decides over the content of entries."""
    root = Path(nvfp4_tvm.__file__).parent
    # followlinks: in a checkout, passes and schedules may be links
    sources = sorted(
        Path(folder, name)
        for folder, _, names in os.walk(root, followlinks=True)
        for name in names
        if name.endswith(".py")
    )
    return {
        "package": nvfp4_tvm.__version__,
        "sources": output_key(**{str(path.relative_to(root)): file_digest(path) for path in sources}),
        "tvm": TVM_VERSION,
        "tvm_ffi": FFI_VERSION,
        "layout": layout.LAYOUT_VERSION,
    }


@dataclass(frozen=True)
class Entry:
    """One entry: its folder, kind, bytes, when it was last used (seconds since 1970), and what it is of."""

    path: Path
    kind: str
    nbytes: int
    used: float
    description: str


class ModelCache:
    """A cache folder.

    Parameters
    ----------
    folder : Path
        Created when the first entry is put in.
    limit : int
        Bytes; the entries used longest ago make room for new ones.
    """

    def __init__(self, folder: Path, limit: int = DEFAULT_LIMIT):
        self.folder, self.limit = folder, limit

    @classmethod
    def default(cls) -> ModelCache | None:
        """Return the user's cache, or None if it is turned off.

        Raises
        ------
        NVFP4Error
            If ``NVFP4_TVM_CACHE_BYTES`` is no number of bytes.
        """
        folder = cache_folder()
        if folder is None:
            return None
        limit = os.environ.get(LIMIT_VARIABLE, str(DEFAULT_LIMIT))
        if not (limit.isascii() and limit.isdigit()):
            raise NVFP4Error(f"{LIMIT_VARIABLE}: found {limit!r:.40}, expected a number of bytes")
        return cls(folder / "models", int(limit))

    # -- entries

    def take(self, kind: Kind, key: str, target: Path) -> dict[str, Any] | None:
        """Put the files of an entry into the folder ``target``.

        Returns
        -------
        dict or None
            What `put` was given as ``about``; None if there is no such entry, or it was damaged.
        """
        entry = self._entry(kind, key)
        try:
            meta = read_json(entry / _META)
            names = meta["files"]
            for name in names:
                if Path(name).name != name:
                    raise NVFP4Error(f"{entry}: names a file {name!r:.80}, expected one inside of it")
                _link(entry / name, target / name)
            found = digests({name: partial(content_digest, target / name) for name in names})
            if found == names:
                os.utime(entry / _META)
                logger.info("%s: from the cache, %s", kind, entry)
                return meta["about"]
            logger.warning("%s: damaged entry (its digests do not match), making it again", entry)
        except (OSError, NVFP4Error, KeyError, TypeError, AttributeError):
            if not entry.exists():
                return None
            logger.warning("%s: damaged entry (it cannot be read), making it again", entry)
        self.remove(entry)
        return None

    def put(
        self,
        kind: Kind,
        key: str,
        files: Sequence[Path],
        about: Mapping[str, Any],
        description: str,
        known: Mapping[str, str] | None = None,
    ) -> None:
        """Keep files of an output. A cache that cannot be written is a warning, not an error.

        ``known`` are SHA-256 of tensors in the files, which are then not read again.
        """
        size = sum(path.stat().st_size for path in files)
        if size > self.limit:
            logger.info("%s: %d bytes are more than the cache holds (%s)", kind, size, LIMIT_VARIABLE)
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.prune(max(self.limit - size, 0))
            new = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=self.folder))
            try:
                for path in files:
                    _link(path, new / path.name)
                found = digests({path.name: partial(content_digest, path, known) for path in files})
                meta = {
                    "files": found,
                    "about": about,
                    "kind": kind,
                    "description": description,
                    "bytes": size,
                }
                (new / _META).write_text(json.dumps(meta) + "\n")
                os.rename(new, self._entry(kind, key))
            except OSError:
                shutil.rmtree(new, ignore_errors=True)
                if not self._entry(kind, key).exists():  # else another process was faster
                    raise
        except OSError as error:
            logger.warning(
                "%s: cannot be written (%s); %s will be made again next time", self.folder, error, kind
            )

    def entries(self) -> list[Entry]:
        """Return all entries, the one used last first."""
        return sorted(self._entries(), key=lambda entry: -entry.used)

    def _entries(self) -> Iterator[Entry]:
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            try:
                if path.name.startswith(_TEMPORARY):
                    if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                        shutil.rmtree(path, ignore_errors=True)
                    continue
                if not path.is_dir():
                    continue
                used = (path / _META).stat().st_mtime
                nbytes = sum(file.stat().st_size for file in path.iterdir())
                meta = read_json(path / _META)
                yield Entry(path, path.name.partition("-")[0], nbytes, used, str(meta.get("description", "")))
            except (OSError, NVFP4Error):
                self.remove(path)

    def prune(self, limit: int) -> list[Entry]:
        """Remove entries, those used longest ago first, until at most ``limit`` bytes are left; return them."""
        entries = self.entries()
        total = sum(entry.nbytes for entry in entries)
        removed = []
        while entries and total > limit:
            removed.append(entries.pop())
            total -= removed[-1].nbytes
            self.remove(removed[-1].path)
        return removed

    def remove(self, entry: Path) -> None:
        """Remove an entry; whoever is reading it has links of its own."""
        aside = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=self.folder))
        try:
            os.rename(entry, aside / entry.name)
        except OSError:
            logger.debug("%s: removed by another process", entry)
        shutil.rmtree(aside, ignore_errors=True)

    def _entry(self, kind: Kind, key: str) -> Path:
        return self.folder / f"{kind}-{key}"

    # -- checkpoints

    def checkpoint_digest(
        self, checkpoint: Checkpoint, report: Callable[[int, int], None] | None = None
    ) -> str:
        """Return a digest of the content of a checkpoint's files; unchanged ones are read once.

        ``report`` is told the bytes read so far and in all.
        """
        files = [*checkpoint.files(), *sorted(checkpoint.path.glob("*.json"))]
        known = self._known()
        tasks: dict[str, Callable[[], str]] = {}
        stamps: dict[str, tuple[str, list[int]]] = {}
        result: dict[str, str] = {}
        total = done = 0
        lock = threading.Lock()

        def count(size: int) -> None:
            nonlocal done
            with lock:
                done += size
                if report is not None:
                    report(done, total)

        for path in files:
            place = os.path.realpath(path)
            stat = os.stat(place)
            stamps[path.name] = place, [stat.st_size, stat.st_mtime_ns, stat.st_ino, stat.st_dev]
            if place in known and known[place][:-1] == stamps[path.name][1]:
                result[path.name] = known[place][-1]
            else:
                tasks[path.name] = partial(file_digest, path, count=count)
                total += stat.st_size
        result |= digests(tasks)
        for name in tasks:
            place, stamp = stamps[name]
            if time.time() - stamp[1] / 1e9 > _SETTLED_SECONDS:
                known.pop(place, None)
                known[place] = [*stamp, result[name]]
        if tasks:
            self._remember(known)
        return output_key(**result)

    def _known(self) -> dict[str, list[Any]]:
        try:
            known = read_json(self.folder / _KNOWN)
        except NVFP4Error:
            return {}
        return {place: value for place, value in known.items() if isinstance(value, list) and len(value) == 5}

    def _remember(self, known: dict[str, list[Any]]) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self.folder, prefix=_TEMPORARY, delete=False) as file:
                json.dump(dict(list(known.items())[-_MAX_KNOWN:]), file)
            os.replace(file.name, self.folder / _KNOWN)
        except OSError as error:
            logger.warning("%s: cannot be written (%s)", self.folder, error)


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where that cannot be."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)
