"""Where NVIDIA's compiler libraries, headers and binary tools are on this machine.

The libraries come from PyPI packages (the extra ``cuda``), so no CUDA installation is needed. They are
taken from version 12.9 and loaded by path with ctypes. The ``cuda-bindings`` package would be the natural
wrapper, but it loads whichever NVRTC it meets first: beside a package that brought version 13 it compiled
with 13, against the headers of 12.9, and produced PTX that only the newest drivers accept. The C interfaces
used here are a dozen functions that have not changed since CUDA 11.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
from functools import cache
from pathlib import Path

from nvfp4_tvm.errors import TargetError

INSTALL = "pip install 'nvfp4-tvm[cuda]'"
"""What to run when a compiler library is missing."""


def nvidia_roots() -> list[Path]:
    """Folders that hold NVIDIA's PyPI packages (``site-packages/nvidia``), in the order of ``sys.path``."""
    spec = importlib.util.find_spec("nvidia")
    if spec is None or spec.submodule_search_locations is None:
        return []
    return [Path(place) for place in spec.submodule_search_locations if Path(place).is_dir()]


def toolkit_roots() -> list[Path]:
    """CUDA installations: named by ``CUDA_HOME`` or ``CUDA_PATH``, else the conventional place."""
    names = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    return [Path(name) for name in names if name and Path(name).is_dir()]


@cache
def load_library(soname: str, package: str) -> ctypes.CDLL:
    """Load a compiler library of the CUDA 12 line.

    Parameters
    ----------
    soname : str
        File name with its major version, such as ``libnvrtc.so.12``.
    package : str
        Folder of its PyPI package below ``nvidia``, such as ``cuda_nvrtc``.

    Returns
    -------
    ctypes.CDLL

    Raises
    ------
    TargetError
        When no such library is found or it does not load.
    """
    candidates = [root / package / "lib" / soname for root in nvidia_roots()]
    candidates += [root / folder / soname for root in toolkit_roots() for folder in ("lib64", "lib")]
    # The bare name last: the dynamic loader's own search path
    for candidate in [*map(str, filter(Path.is_file, candidates)), soname]:
        try:
            return ctypes.CDLL(candidate)
        except OSError as error:
            reason = str(error)
    raise TargetError(f"compiling for CUDA needs {soname}, which did not load ({reason}): run {INSTALL}")


@cache
def cuda_include() -> Path:
    """Folder of the CUDA headers (``cuda_fp16.h``, ``cuda_bf16.h``) that belong to NVRTC 12.9.

    Raises
    ------
    TargetError
        When the package that holds them is not installed.
    """
    for root in nvidia_roots():
        folder = root / "cuda_runtime" / "include"
        if (folder / "cuda_bf16.h").is_file():
            return folder
    raise TargetError(f"compiling for CUDA needs the headers of nvidia-cuda-runtime-cu12: run {INSTALL}")


def extra_include(header: str, packages: dict[str, str]) -> Path:
    """Folder of a header that few kernels need and that therefore no dependency of this package brings.

    Parameters
    ----------
    header : str
        As written in the ``#include``.
    packages : dict of str to str
        Include folder below ``nvidia`` to the PyPI package to name in the message, best first.

    Raises
    ------
    TargetError
        When none holds it.
    """
    for folder in packages:
        for root in nvidia_roots():
            if (root / folder / header).is_file():
                return root / folder
    best = next(iter(packages.values()))
    raise TargetError(
        f"a kernel includes <{header}>, which is not installed: run pip install '{best}>=12.9,<13'"
    )


def find_tool(name: str) -> Path:
    """Path of a CUDA binary tool (``cuobjdump``, ``nvdisasm``): from PyPI packages, PATH, or an installation.

    Raises
    ------
    TargetError
        When it is not on this machine.
    """
    for root in nvidia_roots():
        # Wheels of the CUDA 13 line share one folder, those of the 12 line have one each
        for folder in ("cu13", f"cuda_{name}"):
            path = root / folder / "bin" / name
            if os.access(path, os.X_OK):
                return path
    found = shutil.which(name)
    if found:
        return Path(found)
    for root in toolkit_roots():
        if os.access(root / "bin" / name, os.X_OK):
            return root / "bin" / name
    raise TargetError(f"{name} is not on this machine: run pip install nvidia-cuda-{name}")
