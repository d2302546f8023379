"""Makes the modules of tests/helpers importable, keeps files in one process, and says how GPU tests compile.

Not tests/ itself is on the path: its folder nvfp4_tvm would hide the package of that name.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent
HELPERS = str(ROOT / "helpers")
if HELPERS not in sys.path:
    sys.path.insert(0, HELPERS)

CACHE = pytest.StashKey[str]()


def pytest_configure(config):
    """Give the run a cache of its own, shared by its processes: what a user has cached must not matter here."""
    if not hasattr(config, "workerinput"):
        config.stash[CACHE] = tempfile.mkdtemp(prefix="nvfp4_tvm_tests_")
        os.environ["NVFP4_TVM_CACHE"] = config.stash[CACHE]


def pytest_unconfigure(config):
    if CACHE in config.stash:
        shutil.rmtree(config.stash[CACHE], ignore_errors=True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Keep a file's tests in one process (``--dist loadgroup``): they share fixtures and compiled kernels.

    Apart, each process would make them again. Files that share more have a group of their own.
    """
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.relative_to(ROOT).with_suffix("").as_posix()))


@pytest.fixture
def nothing_shipped(monkeypatch):
    """The families choose by themselves, as where the package has no tuning records."""
    from nvfp4_tvm.schedules import tuned
    from nvfp4_tvm.schedules.records import Database

    monkeypatch.setattr(tuned, "shipped", lambda arch: Database())


@pytest.fixture(autouse=True)
def _compile_as_the_package_does(request):
    """GPU tests run machine code of the package's compiler, as users do.

    TVM's own callback would take the headers of whichever CUDA the machine has, which need not fit the NVRTC of
    the extra ``cuda``, and adds ``--use_fast_math``.
    """
    if request.node.get_closest_marker("gpu") is None:
        yield
        return
    import tvm

    from nvfp4_tvm.arch import arch_of_capability
    from nvfp4_tvm.codegen import cuda_machine_code

    with cuda_machine_code(arch_of_capability(tvm.cuda(0).compute_version).compile_arch, ptx=False):
        yield
