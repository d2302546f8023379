import hashlib

import numpy as np
import pytest

from nvfp4_tvm import integrity
from nvfp4_tvm.checkpoint.writer import SafetensorsWriter
from nvfp4_tvm.errors import CheckpointError


def test_digests_of_parts_of_files_and_of_arrays(tmp_path, monkeypatch):
    monkeypatch.setattr(integrity, "_PIECE", 64)
    data = np.random.default_rng(0).bytes(1000)
    path, counted = tmp_path / "file", []
    path.write_bytes(data)
    assert integrity.file_digest(path, count=counted.append) == hashlib.sha256(data).hexdigest()
    assert sum(counted) == 1000 and max(counted) == 64
    part = integrity.file_digest(path, 10, 500)
    assert part == hashlib.sha256(data[10:510]).hexdigest()
    assert part == integrity.array_digest(np.frombuffer(data, np.uint16, 250, 10).reshape(5, 50))
    assert integrity.file_digest(path, 900, 500) == hashlib.sha256(data[900:]).hexdigest()
    assert integrity.array_digest(np.empty((0, 3))) == hashlib.sha256(b"").hexdigest()


def test_content_of_safetensors_files(tmp_path, monkeypatch):
    """Every bit of the file has a say, and tensors with a known digest are not read."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.integers(0, 256, size, np.uint8) for name, size in (("a", 100), ("b", 300), ("c", 0))}
    with SafetensorsWriter(tmp_path, "model", {n: (np.uint8, a.shape) for n, a in arrays.items()}) as writer:
        for name, array in arrays.items():
            writer.write(name, array)
    path = tmp_path / "model.safetensors"
    expected, data = integrity.content_digest(path), path.read_bytes()
    assert integrity.content_digest(path, writer.digests) == expected
    assert integrity.content_digest(path, {"a": writer.digests["a"]}) == expected
    assert integrity.content_digest(path, {**writer.digests, "b": "other"}) != expected
    for at in (len(data) - 1, len(data) - 350):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert integrity.content_digest(path) != expected
    path.write_bytes(data.replace(b'"a"', b'"d"'))
    assert integrity.content_digest(path, {**writer.digests, "d": writer.digests["a"]}) != expected
    path.write_bytes(data[:50])
    with pytest.raises(CheckpointError):
        integrity.content_digest(path)
    path.write_bytes(data)
    monkeypatch.setattr(integrity, "file_digest", lambda path, begin=0, size=None: f"{begin} {size}")
    read = integrity.content_digest(path, writer.digests)
    assert read == integrity.content_digest(path, writer.digests)
    other = tmp_path / "lib.so"
    assert integrity.content_digest(other) == "0 None"


def test_many_at_once():
    assert integrity.digests({name: name.upper for name in "abc"}) == {"a": "A", "b": "B", "c": "C"}
