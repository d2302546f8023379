"""What lands in site-packages: one package, with passes/ and schedules/ inside it."""

import json
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = (
    "nvfp4_tvm", "passes", "schedules", "startup", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in",
)  # fmt: skip
STARTUP = {"nvfp4_tvm_mlc.pth", "nvfp4_tvm_mlc_hook.py"}
BUILD = """
import sys
sys.path.insert(0, "startup")
import build_backend
print(getattr(build_backend, sys.argv[1])(sys.argv[2]))
"""
# -S: without the .pth files of this environment, whose own install of the package would answer
IMPORT = """
import json, site, sys
sys.path[:1] = [sys.argv[1]]  # first: an editable install's finder has the same module name everywhere
sys.path.append(sys.argv[2])
site.addsitedir(sys.argv[1])
import nvfp4_tvm, nvfp4_tvm.passes, nvfp4_tvm.schedules
absent = {}
for name in ("passes", "schedules"):
    try:
        __import__(name)
        absent[name] = False
    except ModuleNotFoundError:
        absent[name] = True
files = [module.__file__ for module in (nvfp4_tvm, nvfp4_tvm.passes, nvfp4_tvm.schedules)]
print(json.dumps({"files": files, **absent}))
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the sources, so that builds leave nothing in the checkout and take nothing stale from it."""
    folder = tmp_path_factory.mktemp("source")
    ignore = shutil.ignore_patterns("__pycache__")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=ignore)
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def build(source, hook, into):
    """Build a wheel with the backend that pyproject.toml names and unpack it."""
    into.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", BUILD, hook, str(into)], cwd=source, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = into.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(into / "site")
    return into / "site"


@pytest.fixture(scope="module")
def wheel_site(source, tmp_path_factory):
    return build(source, "build_wheel", tmp_path_factory.mktemp("wheel") / "out")


@pytest.fixture(scope="module")
def editable_site(source, tmp_path_factory):
    return build(source, "build_editable", tmp_path_factory.mktemp("editable") / "out")


def imported(site, elsewhere):
    done = subprocess.run(
        [sys.executable, "-S", "-c", IMPORT, str(site), sysconfig.get_path("purelib")],
        cwd=elsewhere,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_wheel_holds_one_package(wheel_site):
    top = {path.name for path in wheel_site.iterdir()}
    (metadata,) = {name for name in top if name.endswith(".dist-info")}
    assert top == {"nvfp4_tvm", metadata, *STARTUP}
    assert (wheel_site / metadata / "licenses" / "LICENSE").is_file()
    entry = (wheel_site / metadata / "entry_points.txt").read_text()
    assert "nvfp4-tvm = nvfp4_tvm.cli.main:main" in entry


def test_the_wheel_holds_every_source_file(source, wheel_site):
    mapped = {"nvfp4_tvm": "nvfp4_tvm", "passes": "nvfp4_tvm/passes", "schedules": "nvfp4_tvm/schedules"}
    expected = {
        (Path(inside) / file.relative_to(source / folder)).as_posix()
        for folder, inside in mapped.items()
        for file in (source / folder).rglob("*")
        if file.is_file() and file.suffix in (".py", ".typed", ".json", ".jsonl")
    }
    assert {
        "nvfp4_tvm/py.typed",
        "nvfp4_tvm/passes/pipeline.py",
        "nvfp4_tvm/schedules/intrin/decode.py",
    } < expected
    found = {
        file.relative_to(wheel_site).as_posix()
        for file in (wheel_site / "nvfp4_tvm").rglob("*")
        if file.is_file()
    }
    assert found == expected


def test_the_wheel_imports(wheel_site, tmp_path):
    report = imported(wheel_site, tmp_path)
    assert all(Path(file).is_relative_to(wheel_site) for file in report["files"])
    assert report["passes"] and report["schedules"]


def test_the_editable_install_imports(source, editable_site, tmp_path):
    assert not {"passes", "schedules"} & {path.name for path in editable_site.iterdir()}
    report = imported(editable_site, tmp_path)
    assert [Path(file).parent for file in report["files"]] == [
        source / "nvfp4_tvm", source / "passes", source / "schedules",
    ]  # fmt: skip
    assert report["passes"] and report["schedules"]


@pytest.mark.parametrize("kind", ["wheel_site", "editable_site"])
def test_installs_activate_the_plug_in_for_mlc_llm(kind, request, tmp_path):
    site = request.getfixturevalue(kind)
    assert {path.name for path in site.iterdir()} >= STARTUP
    (tmp_path / "mlc_llm.py").write_text("")
    code = """
import site, sys
sys.path.insert(0, sys.argv[1])
sys.path.append(sys.argv[2])
site.addsitedir(sys.argv[1])
assert "nvfp4_tvm" not in sys.modules
import mlc_llm
print("nvfp4_tvm.mlc" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-S", "-c", code, str(site), sysconfig.get_path("purelib")],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == "True\n", done.stderr


def test_this_environment_has_no_stray_packages(tmp_path):
    for name in ("passes", "schedules"):
        done = subprocess.run(
            [sys.executable, "-c", f"import {name}"], cwd=tmp_path, capture_output=True, text=True
        )
        assert f"No module named '{name}'" in done.stderr
