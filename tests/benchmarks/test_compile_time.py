import benchmark_modules  # noqa: F401
import pytest

from benchmarks import compile_time
from benchmarks.large_models import Model
from nvfp4_tvm.codegen.cache import VARIABLE


def test_parts_add_up(monkeypatch, tmp_path):
    monkeypatch.setitem(compile_time.MODELS, "tiny", Model(256, 256, 1, 2, 2, 64))
    monkeypatch.setenv(VARIABLE, "0")
    rows = list(compile_time.measure("tiny", "cuda:sm_89", "bfloat16", tmp_path))
    *parts, whole = rows
    assert whole["part"] == "all" and len({row["part"] for row in rows}) == len(rows) == 8
    assert sum(row["seconds"] for row in parts) == pytest.approx(whole["seconds"], abs=0.5)
    assert [row["kernels"] for row in rows if "kernels" in row] != [0]
    assert all(row["target"] == "cuda:sm_89" and row["model"] == "tiny" for row in rows)
    assert (tmp_path / "lib.so").stat().st_size > 0


def test_a_target_without_machine_code_is_refused(tmp_path):
    with pytest.raises(AssertionError, match="llvm: expected a CUDA target"):
        list(compile_time.measure("8B", "llvm", "bfloat16", tmp_path))
