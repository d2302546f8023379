"""Candidates compiled in processes of their own, into the kernel cache, from where the measuring process loads
them."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from nvfp4_tvm.codegen.cache import VARIABLE, cache_folder
from nvfp4_tvm.errors import TargetError
from nvfp4_tvm.tuning.process import ignore_interrupts
from nvfp4_tvm.tuning.trial import Build

#: The library of a candidate, or why there is none.
Built = Path | str


def compile_build(build: Build, arch: str) -> Built:
    """Compile one candidate. Errors are returned: one that cannot be sent back would end the whole pool."""
    from nvfp4_tvm.schedules.kernel import CudaKernel
    from nvfp4_tvm.schedules.spaces import space_of
    from nvfp4_tvm.target import cuda_target
    from nvfp4_tvm.torch_library import find_library, library_path

    try:
        rule = space_of(build.candidate.family).rule(build.candidate.config)
        kernel = rule.apply(build.problem, cuda_target(arch).target)
        if not isinstance(kernel, CudaKernel):
            return f"{rule.name} refuses {build.problem}"
        find_library(build.problem, arch, kernel)
        path = library_path(build.problem, arch, kernel)
        return str(kernel.name) if path is None else path
    except Exception as error:
        return f"does not compile: {type(error).__name__}: {' '.join(str(error).split())[:300]}"


class Builder:
    """Compiles each candidate once.

    Parameters
    ----------
    arch : str
        For which GPU.
    jobs : int
        Processes.
    compile : callable, optional
        What the processes run; picklable.

    Raises
    ------
    TargetError
        If the kernel cache is turned off, through which libraries reach the measuring process.
    """

    def __init__(self, arch: str, jobs: int, compile: Callable[[Build, str], Built] = compile_build) -> None:
        if cache_folder() is None:
            raise TargetError(f"{VARIABLE}=0 turns the kernel cache off; tuning needs it, unset the variable")
        self.arch, self.jobs, self.compile = arch, jobs, compile
        self._futures: dict[Build, Future[Built]] = {}
        self._pool = self._start()

    def _start(self) -> ProcessPoolExecutor:
        # A fork would share TVM's state
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(self.jobs, context, ignore_interrupts, (os.getpid(),))

    def submit(self, build: Build) -> Future[Built]:
        """Return the future library of a candidate."""
        if build not in self._futures:
            try:
                self._futures[build] = self._pool.submit(self.compile, build, self.arch)
            except BrokenProcessPool:
                self._pool = self._start()
                self._futures[build] = self._pool.submit(self.compile, build, self.arch)
        return self._futures[build]

    @staticmethod
    def result(future: Future[Built]) -> Built:
        """Return what came of a build; a compiler that crashed took the builds beside it along."""
        try:
            return future.result()
        except BrokenProcessPool:
            return "does not compile: a compiling process crashed"

    def close(self) -> None:
        """End the processes; what has not begun is dropped."""
        self._pool.shutdown(wait=False, cancel_futures=True)
