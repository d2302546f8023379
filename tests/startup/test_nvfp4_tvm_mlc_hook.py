"""The start-up file: costs nothing, activates on the import of mlc_llm, can be switched off."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

STARTUP = Path(__file__).parents[2] / "startup"


@pytest.fixture
def folder(tmp_path):
    """A folder with a package mlc_llm and an nvfp4_tvm.mlc that says that it was imported."""
    for name in ("mlc_llm", "nvfp4_tvm", "nvfp4_tvm/mlc"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    (tmp_path / "mlc_llm" / "__main__.py").write_text("print('main')")
    (tmp_path / "nvfp4_tvm" / "mlc" / "__init__.py").write_text("print('active')")
    return tmp_path


def run(folder, *arguments, env=None):
    """Run Python, isolated from this environment's own start-up files, with ours done as a .pth file does."""
    start = f"import sys; sys.path[:0] = [{str(folder)!r}, {str(STARTUP)!r}]; import nvfp4_tvm_mlc_hook; "
    done = subprocess.run(
        [sys.executable, "-S", "-c", start + "; ".join(arguments)],
        env={**os.environ, **(env or {})}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def test_nothing_is_imported_at_start_up(folder):
    code = "before = set(sys.modules)", "import json", "print('nvfp4_tvm' in sys.modules)"
    assert run(folder, *code).stdout == "False\n"
    alone = "import sys; sys.path.insert(0, sys.argv[1]); old = set(sys.modules); import nvfp4_tvm_mlc_hook; "
    alone += "print(set(sys.modules) - old)"
    done = subprocess.run([sys.executable, "-c", alone, str(STARTUP)], capture_output=True, text=True)
    assert done.stdout in ("{'nvfp4_tvm_mlc_hook'}\n", "set()\n"), done.stderr


def test_the_import_of_mlc_llm_activates_once(folder):
    assert run(folder, "import mlc_llm", "import mlc_llm.__main__").stdout == "active\nmain\n"


def test_python_m_mlc_llm_activates(folder):
    assert (
        run(folder, "import runpy", "runpy.run_module('mlc_llm', run_name='__main__')").stdout
        == "active\nmain\n"
    )


def test_a_variable_switches_it_off(folder):
    assert run(folder, "import mlc_llm", env={"NVFP4_TVM_MLC": "0"}).stdout == ""


def test_a_broken_plug_in_is_reported_and_mlc_llm_still_imports(folder):
    (folder / "nvfp4_tvm" / "mlc" / "__init__.py").write_text("raise ImportError('no such TVM')")
    done = run(folder, "import mlc_llm", "print('imported')")
    assert done.stdout == "imported\n"
    assert "no such TVM" in done.stderr and "NVFP4_TVM_MLC=0" in done.stderr
