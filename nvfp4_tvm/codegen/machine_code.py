"""Builds whose CUDA modules hold machine code and PTX, with and without a GPU in the machine.

TVM's CUDA code generator hands its source to the global function ``tvm_callback_cuda_compile`` and keeps
what comes back as the module's image. `cuda_machine_code` puts a compiler there that returns a fatbin: a
cubin for the architecture of the build and PTX for later GPUs. Loading such a library needs the driver and
nothing else.

What PTX a fatbin gets follows from the architecture string:

- ``sm_80``, ``sm_86``, ``sm_89``, ``sm_90``: the PTX of the same compilation, which every later GPU
  translates.
- ``sm_90a`` (kernels with ``wgmma``): code of the architecture-specific set runs on compute capability 9.0
  only, as machine code and as PTX (PTX ISA, directive ``.target``). The source is therefore compiled again
  for plain ``sm_90``, through ptxas, because NVRTC alone does not look into inline assembly. If that
  succeeds its PTX is added; if not, the kernels do need sm_90a and the image holds no PTX. Name the
  architecture ``sm_90`` for modules without ``wgmma``: one compilation, and portable.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import tvm.support.nvcc  # noqa: F401  registers TVM's own callback, which must happen before ours replaces it
import tvm_ffi

from nvfp4_tvm.arch import get_arch
from nvfp4_tvm.codegen.cuda_runtime import ensure_cuda_codegen
from nvfp4_tvm.codegen.fatbin import make_fatbin
from nvfp4_tvm.codegen.nvrtc import Compiled, CompileError, compile_source

_LOG = logging.getLogger(__name__)

CALLBACK = "tvm_callback_cuda_compile"
"""Global function that TVM's CUDA code generator calls with its source."""


@dataclass(frozen=True)
class ResourceUsage:
    """What ptxas allocated for one kernel.

    Attributes
    ----------
    registers : int
        32-bit registers of a thread.
    spill_stores, spill_loads : int
        Bytes of a thread moved to and from local memory for want of registers.
    stack : int
        Stack frame of a thread in bytes; arrays with computed indices land there too.
    static_shared : int
        Statically declared shared memory of a block in bytes.
    """

    registers: int
    spill_stores: int
    spill_loads: int
    stack: int
    static_shared: int


@dataclass(frozen=True)
class MachineCode:
    """One compiled CUDA module.

    Attributes
    ----------
    arch : str
        Architecture of the machine code.
    fatbin : bytes
        The image.
    ptx_arch : str or None
        Architecture whose PTX the image holds as well; None when it holds none.
    usage : dict of str to ResourceUsage
        By kernel, as ptxas reported it for ``arch``.
    source : str
        The CUDA source.
    """

    arch: str
    fatbin: bytes = field(repr=False)
    ptx_arch: str | None
    usage: dict[str, ResourceUsage]
    source: str = field(repr=False)


@dataclass(frozen=True)
class BuildLog:
    """What was compiled inside one `cuda_machine_code`, in order.

    Attributes
    ----------
    modules : list of MachineCode
        One for each call of the compiler.
    """

    modules: list[MachineCode] = field(default_factory=list)

    @property
    def usage(self) -> dict[str, ResourceUsage]:
        """Resource usage of all kernels by name; a later module wins over an earlier one."""
        return {name: usage for module in self.modules for name, usage in module.usage.items()}


# ptxas -v, stable since CUDA 11; NVRTC 12.9 prints the properties line with "." in place of "info :"
_ENTRY = re.compile(r"Compiling entry function '(?P<name>[^']+)' for '(?P<arch>[^']+)'")
_FRAME = re.compile(
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
)
_USED = re.compile(r"Used (?P<registers>\d+) registers")
_SHARED = re.compile(r"(?P<bytes>\d+) bytes smem")


def parse_ptxas_log(log: str) -> dict[str, ResourceUsage]:
    """Read ``ptxas -v``.

    Parameters
    ----------
    log : str
        Log of a compilation with ``--ptxas-options=-v``.

    Returns
    -------
    dict of str to ResourceUsage
        By kernel. Kernels of which the log lacks a part are an error, not a zero.

    Raises
    ------
    RuntimeError
        When ptxas began a kernel and did not report it.
    """
    usage: dict[str, ResourceUsage] = {}
    starts = list(_ENTRY.finditer(log))
    for start, end in zip(starts, [*(s.start() for s in starts), len(log)][1:], strict=True):
        part = log[start.end() : end]
        # Device functions that were not inlined report properties too, after the kernel's own
        frame, used = _FRAME.search(part), _USED.search(part)
        if frame is None or used is None:
            raise RuntimeError(f"ptxas reported no resource usage of kernel {start['name']}: {part.strip()}")
        line_end = part.find("\n", used.start())
        shared = _SHARED.search(part[used.start() : line_end if line_end >= 0 else len(part)])
        usage[start["name"]] = ResourceUsage(
            registers=int(used["registers"]),
            spill_stores=int(frame["stores"]),
            spill_loads=int(frame["loads"]),
            stack=int(frame["stack"]),
            static_shared=int(shared["bytes"]) if shared else 0,
        )
    return usage


def resource_usage(source: str, arch: str, options: Sequence[str] = ()) -> dict[str, ResourceUsage]:
    """Compile CUDA source and read what ptxas allocated.

    Parameters
    ----------
    source : str
        Such as ``module.imports[0].inspect_source("cuda")``. An image has no record of spills, so images
        are not accepted; inside `cuda_machine_code` the usage of every module is kept in its `BuildLog`.
    arch : str
        Architecture to compile for.
    options : sequence of str
        More NVRTC options.

    Returns
    -------
    dict of str to ResourceUsage
        By kernel.
    """
    get_arch(arch)
    return parse_ptxas_log(compile_source(source, arch, options).log)


def _portable(compiled: Compiled, source: str, options: Sequence[str]) -> Compiled | None:
    """The compilation whose PTX later GPUs may translate."""
    if not compiled.arch.endswith("a"):
        return compiled
    try:
        return compile_source(source, compiled.arch.removesuffix("a"), options)
    except CompileError:
        return None


def compile_machine_code(
    source: str, arch: str, ptx: bool = True, options: Sequence[str] = ()
) -> MachineCode:
    """Compile CUDA source to a fatbin.

    Parameters
    ----------
    source : str
        CUDA C++ of a module.
    arch : str
        ``sm_80``, ``sm_86``, ``sm_89``, ``sm_90`` or ``sm_90a``.
    ptx : bool
        Whether to add PTX for later GPUs; see the module's description for ``sm_90a``.
    options : sequence of str
        More NVRTC options.

    Returns
    -------
    MachineCode

    Raises
    ------
    CompileError
        When the source is wrong.
    TargetError
        When the architecture is not supported or a compiler library is missing.
    """
    get_arch(arch)
    compiled = compile_source(source, arch, options)
    portable = _portable(compiled, source, options) if ptx else None
    if ptx and portable is None:
        _LOG.info("a module needs the instructions of %s: its image holds no PTX", arch)
    return MachineCode(
        arch=arch,
        fatbin=make_fatbin(
            [(arch, compiled.cubin)], [(portable.arch, portable.ptx)] if portable is not None else []
        ),
        ptx_arch=portable.arch if portable is not None else None,
        usage=parse_ptxas_log(compiled.log),
        source=source,
    )


@contextmanager
def cuda_machine_code(arch: str, ptx: bool = True, options: Sequence[str] = ()) -> Iterator[BuildLog]:
    """Within this context, builds for CUDA yield modules that hold a fatbin.

    The compiler is a global function of TVM, so the context holds for all threads of the process, and only
    one thread may build at a time. Contexts nest; the previous compiler is restored on the way out.

    Parameters
    ----------
    arch : str
        Architecture to compile for; must be that of the build's target.
    ptx : bool
        Whether to add PTX for later GPUs.
    options : sequence of str
        More NVRTC options.

    Yields
    ------
    BuildLog
        Filled as modules are compiled.

    Raises
    ------
    CompileError, TargetError
        As `compile_machine_code`; they come out of the build as themselves, not as TVM's ``RuntimeError``.

    Examples
    --------
    >>> with cuda_machine_code("sm_89") as log:
    ...     executable = tvm.compile(module, target)
    >>> log.usage["add_kernel"].registers
    """
    get_arch(arch)
    ensure_cuda_codegen()
    log = BuildLog()
    failures: list[Exception] = []

    def compiler(source: str) -> bytes:
        try:
            log.modules.append(compile_machine_code(source, arch, ptx, options))
        except Exception as error:
            # An exception that crosses TVM's C++ comes out as a bare RuntimeError
            failures.append(error)
            raise
        return log.modules[-1].fatbin

    previous: Callable[..., object] = tvm_ffi.get_global_func(CALLBACK)
    tvm_ffi.register_global_func(CALLBACK, compiler, override=True)
    try:
        yield log
    except Exception as error:
        if failures and error is not failures[-1] and str(failures[-1]) in str(error):
            raise failures[-1] from error
        raise
    finally:
        tvm_ffi.register_global_func(CALLBACK, previous, override=True)
