import json
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import raw_checkpoints as rc

import nvfp4_tvm
from nvfp4_tvm import integrity, model_cache
from nvfp4_tvm.checkpoint import open_checkpoint
from nvfp4_tvm.checkpoint.writer import SafetensorsWriter
from nvfp4_tvm.errors import NVFP4Error
from nvfp4_tvm.model_cache import ModelCache, versions

ABOUT = {"names": ["a"]}


@pytest.fixture
def cache(tmp_path):
    return ModelCache(tmp_path / "cache", 10_000)


def output(folder, *sizes):
    """Files of the given sizes in a new folder."""
    folder.mkdir()
    paths = [folder / f"file{i}" for i in range(len(sizes))]
    for path, size in zip(paths, sizes, strict=True):
        path.write_bytes(np.random.default_rng(size).bytes(size))
    return paths


def age(cache, seconds):
    """Make every entry look as if it was used ``seconds`` ago."""
    for entry in cache.entries():
        then = time.time() - seconds
        os.utime(entry.path / model_cache._META, (then, then))


def test_what_is_put_in_comes_out(cache, tmp_path):
    files = output(tmp_path / "made", 100, 2000)
    assert cache.take("library", "k", tmp_path) is None
    cache.put("library", "k", files, ABOUT, "a model")
    target = tmp_path / "target"
    target.mkdir()
    assert cache.take("library", "k", target) == ABOUT
    for path in files:
        assert (target / path.name).read_bytes() == path.read_bytes()
        assert os.stat(path).st_ino == os.stat(target / path.name).st_ino  # no second copy on the disk
    assert cache.take("parameters", "k", target) is None and cache.take("library", "other", target) is None
    (entry,) = cache.entries()
    assert (entry.kind, entry.description) == ("library", "a model") and entry.nbytes >= 2100


def test_files_are_copied_where_they_cannot_be_linked(cache, tmp_path, monkeypatch):
    def refuse(*_paths):
        raise OSError("another file system")

    monkeypatch.setattr(os, "link", refuse)
    (path,) = output(tmp_path / "made", 100)
    cache.put("library", "k", [path], ABOUT, "")
    path.write_bytes(b"changed later")
    assert cache.take("library", "k", tmp_path) == ABOUT
    assert (tmp_path / path.name).stat().st_size == 100


def test_tensors_just_written_are_not_read_again(cache, tmp_path, monkeypatch):
    arrays = {name: np.full(1000, i, np.uint8) for i, name in enumerate("ab")}
    (tmp_path / "target").mkdir()
    with SafetensorsWriter(tmp_path / "made", "params", dict.fromkeys(arrays, (np.uint8, (1000,)))) as writer:
        for name, array in arrays.items():
            writer.write(name, array)
    read, genuine = [], integrity.file_digest
    monkeypatch.setattr(
        integrity, "file_digest", lambda path, *part: (read.append(part), genuine(path, *part))[1]
    )
    path = tmp_path / "made" / "params.safetensors"
    cache.put("parameters", "k", [path], ABOUT, "", writer.digests)
    assert len(read) == 1  # the header
    assert cache.take("parameters", "k", tmp_path / "target") == ABOUT and len(read) == 4
    data = path.read_bytes()
    path.write_bytes(data[:-1] + b"!")
    assert cache.take("parameters", "k", tmp_path / "target") is None


@pytest.mark.parametrize("damage", ["flip", "lose", "meta", "other meta"])
def test_damaged_entries_are_removed_with_a_warning(cache, tmp_path, caplog, damage):
    (path,) = output(tmp_path / "made", 100)
    cache.put("parameters", "k", [path], ABOUT, "")
    (entry,) = cache.entries()
    if damage == "flip":
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    elif damage == "lose":
        (entry.path / path.name).unlink()
    else:
        (entry.path / model_cache._META).write_text("{" if damage == "meta" else '{"files": 3}')
    assert cache.take("parameters", "k", tmp_path) is None
    assert "damaged entry" in caplog.text and not cache.entries()


def test_a_meta_file_cannot_name_files_elsewhere(cache, tmp_path):
    (path,) = output(tmp_path / "made", 100)
    cache.put("library", "k", [path], ABOUT, "")
    (entry,) = cache.entries()
    (tmp_path / "precious").write_text("data")
    (tmp_path / "target").mkdir()
    meta = {"files": {"../precious": "0"}, "about": {}}
    (entry.path / model_cache._META).write_text(json.dumps(meta))
    assert cache.take("library", "k", tmp_path / "target") is None
    assert (tmp_path / "precious").read_text() == "data"


def test_the_oldest_make_room(cache, tmp_path):
    for i, key in enumerate("abc"):
        cache.put("library", key, output(tmp_path / key, 4000 + i), ABOUT, key)
        age(cache, 1000 * (3 - i))
        if key == "b":  # a was used after b was made
            (tmp_path / "target").mkdir()
            assert cache.take("library", "a", tmp_path / "target") == ABOUT
            os.utime(cache._entry("library", "b") / model_cache._META, (1, 1))
    assert {entry.description for entry in cache.entries()} == {"a", "c"}


def test_what_is_larger_than_the_cache_is_not_kept(cache, tmp_path):
    cache.put("library", "small", output(tmp_path / "small", 10), ABOUT, "")
    cache.put("library", "k", output(tmp_path / "made", 20_000), ABOUT, "")
    assert len(cache.entries()) == 1


def test_pruning(cache, tmp_path):
    assert cache.prune(0) == []
    for key in "ab":
        cache.put("library", key, output(tmp_path / key, 1000), ABOUT, key)
    assert len(cache.prune(1 << 20)) == 0 and len(cache.prune(1500)) == 1 and len(cache.prune(0)) == 1
    assert [path.name for path in cache.folder.iterdir()] == []


def test_what_a_dead_process_left_goes_in_the_end(cache):
    for name, seconds in ((".new-old", 1e6), (".new-young", 0)):
        (cache.folder / name).mkdir(parents=True)
        os.utime(cache.folder / name, (time.time() - seconds,) * 2)
    assert cache.entries() == []
    assert [path.name for path in cache.folder.iterdir()] == [".new-young"]


def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    cache = ModelCache(tmp_path / "file" / "cache")
    cache.put("library", "k", output(tmp_path / "made", 10), ABOUT, "")
    assert "cannot be written" in caplog.text


def put_and_take(folder, number):
    cache = ModelCache(folder / "cache", 1 << 20)
    made, target = folder / f"made{number}", folder / f"target{number}"
    target.mkdir()
    (path,) = output(made, 5000)
    for _ in range(20):
        cache.put("library", "k", [path], ABOUT, "")
        found = cache.take("library", "k", target)
        if found is not None and (target / path.name).read_bytes() != path.read_bytes():
            return False
        cache.prune(0)
    return True


def test_processes_share_it(tmp_path):
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
        assert all(pool.map(put_and_take, [tmp_path] * 2, range(2)))


def test_checkpoints_are_read_once(cache, tmp_path, monkeypatch):
    folder = rc.write(tmp_path / "checkpoint", "modelopt")
    read = []
    genuine = model_cache.file_digest
    monkeypatch.setattr(
        model_cache, "file_digest", lambda path, **more: (read.append(path.name), genuine(path, **more))[1]
    )
    for path in folder.iterdir():
        os.utime(path, (1e9, 1e9))
    first = cache.checkpoint_digest(open_checkpoint(folder))
    assert sorted(read) == ["config.json", "model.safetensors"]
    assert cache.checkpoint_digest(open_checkpoint(folder)) == first and len(read) == 2
    rc.write(folder, "modelopt", rc.tensors("modelopt", seed=1))
    assert cache.checkpoint_digest(open_checkpoint(folder)) != first and len(read) == 4
    # Both have just been changed, and may change again before their time does: not remembered.
    cache.checkpoint_digest(open_checkpoint(folder))
    assert len(read) == 6


def test_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("NVFP4_TVM_CACHE", str(tmp_path))
    assert ModelCache.default().folder == tmp_path / "models"
    monkeypatch.setenv("NVFP4_TVM_CACHE_BYTES", "123")
    assert ModelCache.default().limit == 123
    monkeypatch.setenv("NVFP4_TVM_CACHE_BYTES", "much")
    with pytest.raises(NVFP4Error, match="NVFP4_TVM_CACHE_BYTES: found 'much', expected a number of bytes"):
        ModelCache.default()
    monkeypatch.setenv("NVFP4_TVM_CACHE", "0")
    assert ModelCache.default() is None


def test_versions_are_part_of_every_key():
    assert versions()["package"] == nvfp4_tvm.__version__ and len(versions()["sources"]) == 64
