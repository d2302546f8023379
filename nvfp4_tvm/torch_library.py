"""Compiled matmuls on disk as shared libraries, so that a process that needs one starts without compiling.

Beside the machine code that `nvfp4_tvm.codegen.cache` keeps, and in the same folder: what TVM makes of a schedule
before and after NVRTC takes seconds a layer shape too. A library's name is the digest of what it was made of, our
own sources included. Libraries are written aside and renamed: processes may share the folder.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import tvm

from nvfp4_tvm.codegen import cache
from nvfp4_tvm.codegen.cuda_runtime import load_cuda_runtime
from nvfp4_tvm.codegen.matmul import build_kernels, build_matmul
from nvfp4_tvm.errors import TargetError
from nvfp4_tvm.schedules import tuned
from nvfp4_tvm.schedules.base import MatmulProblem
from nvfp4_tvm.schedules.kernel import CudaKernel
from nvfp4_tvm.target import cuda_target

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Library:
    """A compiled matmul.

    Attributes
    ----------
    function : callable
        ``f(x, words, scales, global_scale[, bias][, residual], out, workspace)``.
    slope, constant : int
        ``slope * M + constant`` bytes of workspace are enough for M rows.
    rows : tuple of int
        One M of each kernel.
    """

    function: Callable[..., None]
    slope: int
    constant: int
    rows: tuple[int, ...]

    def workspace_bytes(self, M: int) -> int:
        """Return bytes of workspace that are enough for M rows."""
        return self.slope * M + self.constant


#: What kernels are made by: everything that `nvfp4_tvm.codegen.matmul` imports, but for errors and pins.
MADE_BY = ("arch", "codegen", "codes", "layout", "numerics", "op", "scaling", "schedules", "target")


@functools.cache
def _sources() -> str:
    """Digest of the sources that kernels are made by, wherever they are installed."""
    digest = hashlib.sha256()
    for name in MADE_BY:
        path = Path(str(import_module(f"nvfp4_tvm.{name}").__file__))
        folder = path.parent
        for source in sorted(folder.rglob("*.py")) if path.name == "__init__.py" else [path]:
            digest.update(source.relative_to(folder).as_posix().encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()


def library_path(problem: MatmulProblem, arch: str, kernel: CudaKernel | None = None) -> Path | None:
    """Return where the library of a problem belongs, or None if the cache is turned off.

    Parameters
    ----------
    problem : MatmulProblem
        What to compute.
    arch : str
        For which GPU.
    kernel : CudaKernel, optional
        What runs, whatever the dispatch would choose.
    """
    folder = cache.cache_folder()
    if folder is None:
        return None
    chosen = tuned.digest(arch) if kernel is None else f"kernel {kernel.name}"
    # The name of an entry for no source stands for the toolchain
    toolchain = cache.entry_name("", arch)
    made_of = "\0".join((_sources(), toolchain, repr(problem), str(cuda_target(arch).target), chosen))
    return folder / f"{hashlib.sha256(made_of.encode()).hexdigest()}.so"


def find_library(problem: MatmulProblem, arch: str, kernel: CudaKernel | None = None) -> Library:
    """Load the library of a problem for a GPU architecture, or build it and keep it.

    Parameters
    ----------
    problem : MatmulProblem
        What to compute.
    arch : str
        ``sm_80``, ``sm_86``, ``sm_89`` or ``sm_90``; a GPU of a later one translates the PTX, except of kernels
        that only sm_90a has.
    kernel : CudaKernel, optional
        What runs for every M of the problem, whatever the dispatch would choose.

    Raises
    ------
    TargetError
        If no kernel applies or something to compile with is missing.
    """
    load_cuda_runtime()  # before TVM builds or loads: see there
    path = library_path(problem, arch, kernel)
    found = None if path is None else load_library(path)
    if found is not None:
        return found
    logger.info("compiling %s for %s", problem, arch)
    target = cuda_target(arch).target
    built = (
        build_matmul(problem, target)
        if kernel is None
        else build_kernels(problem, [(problem.M, kernel)], target)
    )
    # reversed: of a kernel that serves several ranges the first counts
    rows = tuple({kernel.name: m_range.low for m_range, kernel in reversed(built.kernels)}.values())[::-1]
    facts = {"name": built.name, "slope": built.bytes.slope, "constant": built.bytes.constant, "rows": rows}
    if path is not None:
        _keep(path, built.module, facts)
    return Library(built.function, built.bytes.slope, built.bytes.constant, rows)


def load_library(path: Path) -> Library | None:
    """Load a library that `find_library` kept, or return None if it is not there or not whole."""
    if not path.exists():
        return None
    try:
        facts = json.loads(path.with_suffix(".json").read_text())
        module = tvm.runtime.load_module(str(path))
        rows = tuple(facts["rows"])
        return Library(module[facts["name"]], facts["slope"], facts["constant"], rows)
    except (OSError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        logger.warning("%s: cannot be read (%s), building it again", path, error)
        return None


def _keep(path: Path, module: tvm.runtime.Module, facts: dict[str, object]) -> None:
    from nvfp4_tvm.compiler import export

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            library = Path(folder) / path.name
            export(module, library)
            # The library comes last: whoever finds one finds its facts
            described = library.with_suffix(".json")
            described.write_text(json.dumps(facts))
            os.replace(described, path.with_suffix(".json"))
            os.replace(library, path)
    except (OSError, RuntimeError, TargetError) as error:
        logger.warning("%s: cannot be written (%s); the next process compiles it again", path, error)
