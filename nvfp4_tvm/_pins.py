"""The versions of TVM this package works with, checked at import."""

import logging
import os
from importlib.metadata import PackageNotFoundError, version

TVM_VERSION = "0.27.0.post1"
#: tvm-ffi 0.1.15 and later crash (SIGSEGV) in ``Schedule.tensorize`` and in any JSON dump of TIR when TVM
#: 0.27 runs on them, and pip installs them by itself, since TVM's wheel sets no upper bound.
FFI_VERSION = "0.1.14.post1"
#: ``1`` in this environment variable tries other versions, such as the TVM that MLC-LLM's wheels bring.
VARIABLE = "NVFP4_TVM_UNPINNED"


def check_versions() -> None:
    """Refuse to run on versions of TVM or tvm-ffi that this package was not tested with; some are known to crash.

    With ``NVFP4_TVM_UNPINNED=1`` in the environment that is a warning.

    Raises
    ------
    ImportError
        If ``apache-tvm`` or ``apache-tvm-ffi`` is missing or not the pinned version; the message names the
        package, the version found and the command that repairs it.
    """
    for package, wanted, why in (
        ("apache-tvm-ffi", FFI_VERSION, "newer releases segfault in Schedule.tensorize of TVM 0.27"),
        ("apache-tvm", TVM_VERSION, "the kernels are built on its TIR passes"),
    ):
        try:
            found = version(package)
        except PackageNotFoundError:
            found = "none"
        if found == wanted:
            continue
        if os.environ.get(VARIABLE) == "1":
            logging.getLogger(__name__).warning(
                "%s is %s, nvfp4_tvm was tested with %s (%s); trying it because %s=1",
                package,
                found,
                wanted,
                why,
                VARIABLE,
            )
        else:
            raise ImportError(
                f"nvfp4_tvm needs {package}=={wanted} but found {found} ({why}); "
                f"run: pip install 'apache-tvm=={TVM_VERSION}' 'apache-tvm-ffi=={FFI_VERSION}', "
                f"or set {VARIABLE}=1 to try it as it is"
            )
