"""The C++ runner: configured, built and run by ctest; then fed damaged inputs."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[1]
# A cmake from PyPI lies beside the interpreter, which need not be on the path.
SEARCH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
CMAKE, CTEST = shutil.which("cmake", path=SEARCH), shutil.which("ctest", path=SEARCH)
CXX = os.environ.get("CXX") or next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)

pytestmark = [
    pytest.mark.xdist_group("cpp_runner"),
    pytest.mark.skipif(CMAKE is None or CTEST is None, reason="no cmake and ctest: pip install cmake"),
    pytest.mark.skipif(CXX is None, reason="no C++ compiler: install g++ or clang++, or set CXX"),
    pytest.mark.slow,
]


def sh(*command: str | Path) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{command} exited with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    tree = tmp_path_factory.mktemp("cpp")
    ninja = ["-G", "Ninja"] if shutil.which("make") is None and shutil.which("ninja", path=SEARCH) else []
    sh(CMAKE, "-S", ROOT, "-B", tree, f"-DPython3_EXECUTABLE={sys.executable}", *ninja)
    log = sh(CMAKE, "--build", tree, "--parallel", "2")
    assert "warning" not in log, log
    return tree


@pytest.fixture(scope="module")
def ctest(tree) -> str:
    return sh(CTEST, "--test-dir", tree, "--output-on-failure")


def run(tree: Path, *arguments: str | Path) -> subprocess.CompletedProcess:
    # No environment: the runner finds the TVM runtime by itself, and needs no Python.
    command = [str(word) for word in (tree / "nvfp4_runner", *arguments)]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60, env={})


def test_ctest_runs_every_case(ctest):
    assert "100% tests passed" in ctest
    for name in ("compile", "gemv", "gemm", "bfloat16", "relax", "wrong_answer"):
        assert f": {name} ." in ctest


def test_runner_links_no_python(tree):
    linked = sh("ldd", tree / "nvfp4_runner") if shutil.which("ldd") else ""
    assert "libpython" not in linked


def test_output_is_what_the_kernel_computed(tree, ctest, tmp_path):
    cases = tree / "tests" / "cpp" / "cases"
    out = tmp_path / "out.safetensors"
    inputs = cases / "gemm.safetensors"
    done = run(tree, cases / "kernels.so", "nvfp4_matmul_100x2880", inputs, "--output", out)
    assert done.returncode == 0, done.stderr
    got, expected = load_file(out)["out"], load_file(inputs)["expected"]
    assert got.dtype == np.float32 and got.shape == (33, 100)
    error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
    assert error < 2e-6
    (printed,) = re.findall(r"relative error (\S+),", done.stdout)
    assert float(printed) == pytest.approx(error, rel=0.01)


def test_damaged_inputs_are_refused_in_one_line(tree, ctest, tmp_path):
    cases = tree / "tests" / "cpp" / "cases"
    good = (cases / "relax.safetensors").read_bytes()
    header = 8 + int.from_bytes(good[:8], "little")
    rng = np.random.default_rng(3)
    damaged = [good[: rng.integers(len(good))] for _ in range(40)]
    for characters in (b'0123456789"{}[],:-', bytes(range(256))):
        for _ in range(60):
            copy = bytearray(good)
            for at in rng.integers(0, header, 2):
                copy[at] = rng.choice(list(characters))
            damaged.append(bytes(copy))
    # a shape whose size overflows 64 bits, and a negative one
    for shape in ("[4611686018427387904,8]", "[-1,-48]", "[5,48,1]", "null"):
        text = good[8:header].replace(b"[5,48]", shape.encode(), 1)
        assert text != good[8:header]
        damaged.append(len(text).to_bytes(8, "little") + text + good[header:])
    refused = 0
    for i, content in enumerate(damaged):
        path = tmp_path / f"{i}.safetensors"
        path.write_bytes(content)
        done = run(tree, cases / "model.so", "nvfp4_matmul_17x48", path)
        # A change of white space, or back to the same, is no damage; a crash would be negative.
        assert done.returncode in (0, 2), (i, done)
        if done.returncode == 2:
            refused += 1
            assert done.stderr.startswith("nvfp4_runner: ") and done.stderr.count("\n") == 1, done.stderr
        else:
            assert "agrees" in done.stdout or '"expected"' not in content[8:header].decode(errors="replace")
    assert refused > 0.8 * len(damaged)
