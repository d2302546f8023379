import pytest

from nvfp4_tvm import torch_library
from nvfp4_tvm.codegen import cache
from nvfp4_tvm.codegen.matmul import build_matmul
from nvfp4_tvm.schedules.base import MatmulProblem, MRange
from nvfp4_tvm.target import cuda_target
from nvfp4_tvm.torch_library import find_library, library_path

PROBLEM = MatmulProblem(24, 256, MRange(1, 8))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "kernels"))
    return tmp_path / "kernels"


@pytest.fixture
def builds(monkeypatch):
    made = []

    def counted(problem, target):
        made.append(problem)
        return build_matmul(problem, target)

    monkeypatch.setattr(torch_library, "build_matmul", counted)
    return made


def test_built_once_and_loaded_then(folder, builds):
    first = find_library(PROBLEM, "sm_89")
    assert builds == [PROBLEM] and len(list(folder.glob("*.so"))) == 1
    again = find_library(PROBLEM, "sm_89")
    assert builds == [PROBLEM]
    assert (again.slope, again.constant, again.rows) == (
        first.slope,
        first.constant,
        first.rows,
    ) and again.rows[0] == 1
    built = build_matmul(PROBLEM, cuda_target("sm_89").target)
    assert all(again.workspace_bytes(M) >= built.workspace_bytes(M) for M in range(1, 9))
    assert callable(again.function)


def test_what_it_depends_on(folder, monkeypatch):
    paths = {
        library_path(MatmulProblem(24, 256), "sm_89"),
        library_path(PROBLEM, "sm_89"),
        library_path(PROBLEM, "sm_80"),
    }
    assert len(paths) == 3
    monkeypatch.setattr(torch_library, "_sources", lambda: "others")
    assert library_path(PROBLEM, "sm_89") not in paths


def test_sources_are_those_of_both_folders():
    torch_library._sources.cache_clear()
    assert len(torch_library._sources()) == 64


def test_a_damaged_library_is_built_again(folder, builds, caplog):
    find_library(PROBLEM, "sm_89")
    (library,) = folder.glob("*.so")
    (facts,) = folder.glob("*.json")
    for path, content in ((facts, b"{}"), (facts, b"not JSON"), (library, b"not a library")):
        intact = path.read_bytes()
        path.unlink()  # a loaded library must not be written over
        path.write_bytes(content)
        caplog.clear()
        assert find_library(PROBLEM, "sm_89").rows[0] == 1
        assert "cannot be read" in caplog.text and path.read_bytes() != content
        assert path.suffix == ".so" or path.read_bytes() == intact
    assert len(builds) == 4


def test_without_a_cache_or_a_place_to_write(monkeypatch, builds, tmp_path, caplog):
    monkeypatch.setenv(cache.VARIABLE, "0")
    assert library_path(PROBLEM, "sm_89") is None and find_library(PROBLEM, "sm_89").rows[0] == 1
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "file" / "folder"))
    assert find_library(PROBLEM, "sm_89").rows[0] == 1
    assert len(builds) == 2 and "cannot be written" in caplog.text
