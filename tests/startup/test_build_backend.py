"""Wheels with start-up files are as the specification of binary distributions wants them."""

import base64
import csv
import hashlib
import sys
import zipfile
from pathlib import Path

import pytest

STARTUP = Path(__file__).parents[2] / "startup"


@pytest.fixture
def backend(monkeypatch):
    monkeypatch.syspath_prepend(str(STARTUP))
    import build_backend

    yield build_backend
    sys.modules.pop("build_backend")


@pytest.mark.parametrize("build", ["build_wheel", "build_editable"])
def test_the_start_up_files_are_in_the_wheel_and_its_record(backend, build, tmp_path, monkeypatch):
    def plain(folder, *_settings):
        with zipfile.ZipFile(Path(folder) / "x-1-py3-none-any.whl", "w") as wheel:
            wheel.writestr("x/__init__.py", "")
            wheel.writestr("x-1.dist-info/RECORD", "x/__init__.py,,\nx-1.dist-info/RECORD,,\n")
        return "x-1-py3-none-any.whl"

    monkeypatch.setattr(backend.build_meta, build, plain)
    name = getattr(backend, build)(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with zipfile.ZipFile(tmp_path / name) as wheel:
        assert wheel.testzip() is None
        rows = list(csv.reader(wheel.read("x-1.dist-info/RECORD").decode().splitlines()))
        assert {row[0] for row in rows} == set(wheel.namelist())
        recorded = {row[0]: row[1:] for row in rows}
        for file in backend.FILES:
            data = wheel.read(file)
            assert data == (STARTUP / file).read_bytes()
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            assert recorded[file] == [f"sha256={digest}", str(len(data))]
