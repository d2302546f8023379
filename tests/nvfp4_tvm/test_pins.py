import subprocess
import sys
from importlib.metadata import PackageNotFoundError

import pytest

from nvfp4_tvm import _pins

RIGHT = {"apache-tvm": _pins.TVM_VERSION, "apache-tvm-ffi": _pins.FFI_VERSION}


def install(monkeypatch, versions):
    """Make ``versions`` what is installed."""

    def version(package):
        if package not in versions:
            raise PackageNotFoundError(package)
        return versions[package]

    monkeypatch.setattr(_pins, "version", version)


def test_the_pins_pass(monkeypatch):
    install(monkeypatch, RIGHT)
    _pins.check_versions()


def test_what_is_installed_here_passes():
    _pins.check_versions()


@pytest.mark.parametrize(
    ("package", "found"),
    [
        ("apache-tvm-ffi", "0.1.15"),
        ("apache-tvm-ffi", "0.2.0"),
        ("apache-tvm-ffi", "0.1.13"),
        ("apache-tvm-ffi", None),
        ("apache-tvm", "0.28.0"),
        ("apache-tvm", None),
    ],
)
def test_another_version_is_refused_by_name(monkeypatch, package, found):
    versions = {name: version for name, version in (RIGHT | {package: found}).items() if version is not None}
    install(monkeypatch, versions)
    with pytest.raises(ImportError) as caught:
        _pins.check_versions()
    message = str(caught.value)
    assert message.startswith(f"nvfp4_tvm needs {package}=={RIGHT[package]} but found {found or 'none'} ")
    assert "pip install" in message and all(
        f"{name}=={version}" in message for name, version in RIGHT.items()
    )
    assert "\n" not in message


def test_another_version_can_be_tried_and_is_warned_of(monkeypatch, caplog):
    install(monkeypatch, {"apache-tvm-ffi": "0.1.13"})
    monkeypatch.setenv(_pins.VARIABLE, "1")
    _pins.check_versions()
    assert [record.getMessage().split(",")[0] for record in caplog.records] == [
        "apache-tvm-ffi is 0.1.13",
        "apache-tvm is none",
    ]
    monkeypatch.setenv(_pins.VARIABLE, "0")
    with pytest.raises(ImportError):
        _pins.check_versions()


def test_the_import_refuses_a_newer_ffi():
    script = """
import importlib.metadata as metadata
real = metadata.version
metadata.version = lambda name: "0.1.15" if name == "apache-tvm-ffi" else real(name)
import nvfp4_tvm
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode != 0
    assert "ImportError: nvfp4_tvm needs apache-tvm-ffi==0.1.14.post1 but found 0.1.15" in done.stderr


def test_the_pins_are_those_of_pyproject():
    from importlib.metadata import requires

    pinned = {
        requirement
        for requirement in requires("nvfp4-tvm") or ()
        if "==" in requirement and ";" not in requirement
    }
    assert pinned == {f"{name}=={version}" for name, version in RIGHT.items()}
