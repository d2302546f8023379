"""setuptools' build backend, which also puts the start-up files into wheels, of editable installs too.

setuptools can lay out packages, but no ``.pth`` file in site-packages: neither in a wheel nor in an editable one.
"""

import base64
import hashlib
import zipfile
from pathlib import Path

from setuptools import build_meta
from setuptools.build_meta import (  # noqa: F401  the rest of the interface
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

FILES = ("nvfp4_tvm_mlc_hook.py", "nvfp4_tvm_mlc.pth")


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    """Build a wheel; PEP 517."""
    return _with_files(
        wheel_directory, build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)
    )


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    """Build an editable wheel; PEP 660."""
    return _with_files(
        wheel_directory, build_meta.build_editable(wheel_directory, config_settings, metadata_directory)
    )


def _with_files(folder, name):
    """Add `FILES` to a wheel and to its RECORD: name, SHA-256, size, as binary distributions are specified."""
    path = Path(folder) / name
    built = path.rename(path.with_suffix(".plain"))
    with zipfile.ZipFile(built) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        lines = []
        for file in FILES:
            data = Path(__file__).with_name(file).read_bytes()
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            lines.append(f"{file},sha256={digest},{len(data)}\n")
            wheel.writestr(file, data)
        for info in source.infolist():
            data = source.read(info)
            if info.filename.endswith(".dist-info/RECORD"):
                data += "".join(lines).encode()
            wheel.writestr(info, data)
    built.unlink()
    return name
