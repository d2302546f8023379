"""Build a kernel that is one launch: its own host function checks the arguments, so there is nothing to add."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import tvm
from tvm.target import Target

from nvfp4_tvm.codegen.compiling import Compiler
from nvfp4_tvm.codegen.launch import link, lower_launch, with_host
from nvfp4_tvm.codegen.machine_code import BuildLog
from nvfp4_tvm.errors import TargetError
from nvfp4_tvm.schedules.kernel import Launch


@dataclass(frozen=True)
class BuiltLaunch:
    """A compiled launch, or several behind one host function.

    Attributes
    ----------
    name : str
        Of the host function in ``module``.
    module : tvm.runtime.Module
        Host code that imports the CUDA module.
    log : BuildLog
        Resources of the kernels.
    """

    name: str
    module: tvm.runtime.Module = field(repr=False)
    log: BuildLog = field(repr=False)

    @property
    def function(self) -> tvm.runtime.PackedFunc:
        """The host function, which takes the launch's arguments."""
        return self.module[self.name]


_built: dict[tuple[str, str, Compiler], BuiltLaunch] = {}
_built_lock = threading.Lock()


def build_launch(
    name: str, make: Callable[[Target], Launch | None], target: Target, compiler: Compiler
) -> BuiltLaunch:
    """Build a launch for a CUDA target, once per process.

    Parameters
    ----------
    name : str
        Of the host function; it must say all that ``make`` depends on.
    make : callable
        Returns the launch for a target, or None if there is none for it.
    target : Target
        A CUDA target.
    compiler : callable
        See :func:`~nvfp4_tvm.codegen.matmul.build_matmul`.

    Raises
    ------
    TargetError
        If the target has no such kernel.
    CompileError
        If the kernel does not compile.
    """
    target = with_host(target)
    key = (name, str(target), compiler)
    with _built_lock:
        if key not in _built:
            launch = make(target)
            if launch is None:
                raise TargetError(f"target {target.kind.name}: has no kernel {name}, expected a cuda target")
            lowered = lower_launch(launch, name, target)
            code = compiler(lowered.source, lowered.arch)
            module = link(tvm.IRModule(), [lowered], [code], target)
            _built[key] = BuiltLaunch(name, module, BuildLog([code]))
        return _built[key]
