import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

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


def test_sources_are_those_that_kernels_are_made_by():
    code = (
        "import sys, nvfp4_tvm.codegen.matmul; print(*(m for m in sys.modules if m.startswith('nvfp4_tvm.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = {module.split(".")[1] for module in done.stdout.split()}
    assert imported - {"_pins", "errors"} == set(torch_library.MADE_BY)


def test_sources_do_not_depend_on_the_place(tmp_path, monkeypatch):
    before = torch_library._sources()
    made_by = [
        Path(torch_library.import_module(f"nvfp4_tvm.{name}").__file__) for name in torch_library.MADE_BY
    ]
    moved = {}
    for name, path in zip(torch_library.MADE_BY, made_by, strict=True):
        if path.name == "__init__.py":
            shutil.copytree(path.parent, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
            moved[name] = tmp_path / name / "__init__.py"
        else:
            moved[name] = tmp_path / path.name
            shutil.copy(path, moved[name])
    monkeypatch.setattr(
        torch_library, "import_module", lambda name: SimpleNamespace(__file__=moved[name.split(".")[1]])
    )
    torch_library._sources.cache_clear()
    try:
        assert torch_library._sources() == before
        moved["layout"].write_text(moved["layout"].read_text() + "\n")
        torch_library._sources.cache_clear()
        assert torch_library._sources() != before
    finally:
        torch_library._sources.cache_clear()


def test_damaged_facts_are_made_again(folder, builds, caplog):
    find_library(PROBLEM, "sm_89")
    (facts,) = folder.glob("*.json")
    intact = facts.read_bytes()
    for content in (b"{}", b"not JSON"):
        facts.write_bytes(content)
        caplog.clear()
        assert find_library(PROBLEM, "sm_89").rows[0] == 1
        assert "cannot be read" in caplog.text and facts.read_bytes() == intact
    assert len(builds) == 3


def test_a_damaged_library_is_seen(tmp_path, caplog):
    # Under another name: the loader gives out again what it has loaded
    (tmp_path / "damaged.json").write_text('{"name": "f", "slope": 0, "constant": 0, "rows": [1]}')
    (tmp_path / "damaged.so").write_bytes(b"not a library")
    assert torch_library.load_library(tmp_path / "damaged.so") is None
    assert "damaged.so: cannot be read" in caplog.text


def test_without_a_cache_or_a_place_to_write(monkeypatch, builds, tmp_path, caplog):
    monkeypatch.setenv(cache.VARIABLE, "0")
    assert library_path(PROBLEM, "sm_89") is None and find_library(PROBLEM, "sm_89").rows[0] == 1
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "file" / "folder"))
    assert find_library(PROBLEM, "sm_89").rows[0] == 1
    assert len(builds) == 2 and "cannot be written" in caplog.text
