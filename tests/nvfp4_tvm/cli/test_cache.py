import json

import pytest

from nvfp4_tvm.model_cache import ModelCache


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """The user's cache with two entries."""
    monkeypatch.setenv("NVFP4_TVM_CACHE", str(tmp_path))
    cache = ModelCache.default()
    for kind, size in (("library", 1000), ("parameters", 3000)):
        (tmp_path / kind).write_bytes(b"x" * size)
        cache.put(kind, "0123456789ab", [tmp_path / kind], {}, f"a {kind}\nof 3")
    return cache


def test_ls(cli, cache):
    done = cli("cache", "ls")
    assert done.code == 0
    lines = done.out.splitlines()
    assert "2 entries, 4." in lines[-1] and str(cache.folder) in lines[-1]
    assert sorted(line.split()[0] for line in lines if "used" in line) == ["library", "parameters"]


def test_ls_as_json(cli, cache):
    report = json.loads(cli("cache", "ls", "--json").out)
    assert report["path"] == str(cache.folder) and report["limit"] == cache.limit
    assert report["bytes"] == sum(entry["nbytes"] for entry in report["entries"]) > 4000
    assert {entry["kind"] for entry in report["entries"]} == {"library", "parameters"}


def test_prune(cli, cache):
    report = json.loads(cli("cache", "prune", "--max-bytes", "3500", "--json").out)
    assert len(report["removed"]) == 1 and len(cache.entries()) == 1
    assert cli("cache", "prune").out.startswith("removed 1 entries")
    assert cache.entries() == []


def test_a_cache_that_is_turned_off(cli, monkeypatch):
    monkeypatch.setenv("NVFP4_TVM_CACHE", "0")
    assert "0 entries, 0 B; turned off" in cli("cache", "ls").out
    assert "removed 0 entries" in cli("cache", "prune").out
