import json
import sys
from importlib.metadata import version
from pathlib import Path

import benchmark_modules
import pytest

from benchmarks import record


def test_rows_are_written_with_what_they_were_measured_on(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "gpu_name", lambda: "a GPU, 1.0")
    file = tmp_path / "deeper" / "figures.json"
    record.write(file, [{"us": 1.5}], repeats=3)
    found = json.loads(file.read_text())
    assert found["rows"] == [{"us": 1.5}] and found["repeats"] == 3 and found["gpu"] == "a GPU, 1.0"
    assert found["versions"]["apache-tvm"] == version("apache-tvm") and found["cpu"] and found["cores"] >= 1
    assert len(found["date"].split("-")) == 3


@pytest.mark.parametrize(
    ("argument", "shown"),
    [
        ("--rows", "--rows"),
        ("results/a.json", "results/a.json"),
        (str(benchmark_modules.ROOT / "benchmarks" / "gemm.py"), "benchmarks/gemm.py"),
        ("/somewhere/of/mine/a.json", "a.json"),
    ],
)
def test_a_command_names_no_place_outside_of_the_repository(argument, shown, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmarks/some.py", argument, "two words"])
    assert record.environment()["command"] == f"python benchmarks/some.py {shown} 'two words'"


def test_a_machine_without_a_gpu(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert record.gpu_name() is None


def test_a_processor_that_is_not_told(monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda *_: "flags : sse\n")
    assert record.cpu_name() == "unknown"
