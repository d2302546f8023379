import hashlib

import numpy as np

from nvfp4_tvm import integrity


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


def test_many_at_once():
    assert integrity.digests({name: name.upper for name in "abc"}) == {"a": "A", "b": "B", "c": "C"}
