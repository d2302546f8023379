"""NVFP4 passes in front of MLC-LLM's pipeline, which then finds calls of finished kernels and plans around them.

``mlc_llm compile`` asks Relax for the pipeline named "mlc_llm". :func:`install` puts one in its place that, for a
module with NVFP4 operators, first

- attaches the bounds of ``seq_len`` and ``batch_size`` that MLC takes from the configuration, so that kernels are
  built up to the largest M that a function can meet (MLC attaches them again, for its memory planning),
- fuses what follows a matmul element by element (:mod:`nvfp4_tvm.passes.fuse_epilogue`),
- lowers to kernels (:func:`nvfp4_tvm.passes.pipeline.kernel_passes`). All functions of the module (prefill,
  decode, batch_decode, verify) share one kernel function for each weight shape and epilogue,
- calls this project's kernels for layers that are not quantized (:mod:`nvfp4_tvm.passes.lower_dense`) and lets
  what else multiplies add up in float32 (:mod:`nvfp4_tvm.passes.sum_in_float32`), unless cuBLAS does all that.

On CUDA these kernels are machine code by then, and calls of them are opaque to MLC's passes: memory planning owns
their outputs and workspaces, and RewriteCUDAGraph captures them, because they are extern functions that launch on
the current stream. On llvm they are PrimFuncs marked as scheduled. There, of a head applied to one row, dlight's
GEMV for CPUs would make a function that LLVM compiles for many minutes.
"""

from __future__ import annotations

import functools
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import tvm
import tvm_ffi
from tvm import relax
from tvm.relax.expr_functor import PyExprVisitor, visitor
from tvm.relax.pipeline import PIPELINE_MAP
from tvm.target import Target

from nvfp4_tvm.arch import get_arch
from nvfp4_tvm.codegen.machine_code import CALLBACK, BuildLog, compile_machine_code
from nvfp4_tvm.errors import TargetError
from nvfp4_tvm.mlc.quantization import ENTRIES
from nvfp4_tvm.passes.fuse_epilogue import FuseNVFP4Epilogue
from nvfp4_tvm.passes.lower_dense import LowerDense
from nvfp4_tvm.passes.pipeline import kernel_passes
from nvfp4_tvm.passes.sum_in_float32 import SumInFloat32
from nvfp4_tvm.schedules.dispatch import table_for

logger = logging.getLogger(__name__)

#: MLC's name of its pipeline (mlc_llm/compiler_pass/pipeline.py).
NAME = "mlc_llm"
#: Prefix of this project's operators.
_PREFIX = "nvfp4."
_INSTALLED = "_nvfp4_tvm_pipeline"

MLCPipeline = Callable[..., tvm.transform.Pass]


def install() -> None:
    """Put the passes in front of MLC's pipeline, which must be registered. Harmless twice."""
    registered = PIPELINE_MAP[NAME]
    if not hasattr(registered, _INSTALLED):
        PIPELINE_MAP[NAME] = with_nvfp4(registered)


def with_nvfp4(mlc_pipeline: MLCPipeline) -> MLCPipeline:
    """Return ``mlc_pipeline`` with this project's passes in front of it.

    The result takes the arguments of ``mlc_pipeline``. For a quantization of this project and a target without
    kernels it raises TargetError when it is called: before anything is compiled.
    """

    @functools.wraps(mlc_pipeline)
    def pipeline(target: Target, *args: Any, **kwargs: Any) -> tvm.transform.Pass:
        if is_nvfp4((kwargs.get("metadata") or {}).get("quantization")):
            check_target(target)
        rest = mlc_pipeline(target, *args, **kwargs)
        bounds = kwargs.get("variable_bounds") or {}

        @tvm.transform.module_pass(opt_level=0, name="nvfp4_tvm.mlc.pipeline")
        def run(mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
            if not has_operators(mod):
                return rest(mod)
            check_target(target)
            log = BuildLog()
            mod = tvm.transform.Sequential(
                nvfp4_passes(target, bounds, log, dispatched=bool(kwargs.get("cublas_gemm")))
            )(mod)
            logger.info("NVFP4: %d CUDA modules for %s", len(log.modules), target.attrs.get("arch", "llvm"))
            if target.kind.name == "cuda":
                compile_without_nvcc(target)
            return rest(mod)

        return run

    setattr(pipeline, _INSTALLED, True)
    return pipeline


def nvfp4_passes(
    target: Target, bounds: Mapping[str, int], log: BuildLog, dispatched: bool = False
) -> list[tvm.transform.Pass]:
    """Return the passes that lower NVFP4 operators of a module of MLC's.

    Parameters
    ----------
    target : Target
        That of the build.
    bounds : mapping of str to int
        Largest values of variables in shapes, by name, as MLC computes them; zero and less mean no bound.
    log : BuildLog
        Takes the resources of CUDA kernels.
    dispatched : bool
        Whether MLC gives matmuls of 16-bit numbers to cuBLAS.
    """
    return [
        AttachBounds(bounds),
        FuseNVFP4Epilogue(target),
        *kernel_passes(target, log),
        *([] if dispatched else [LowerDense(target, log), SumInFloat32()]),
        relax.transform.DeadCodeElimination(),
    ]


@tvm.transform.module_pass(opt_level=0, name="AttachBounds")
class AttachBounds:
    """Say how large variables of shapes can be: the attribute ``tir_var_upper_bound`` of every function."""

    def __init__(self, bounds: Mapping[str, int]) -> None:
        self.bounds = {name: bound for name, bound in bounds.items() if bound > 0}

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply to every Relax function."""
        mod = mod.clone()
        for gvar, function in mod.functions_items():
            if isinstance(function, relax.Function):
                mod[gvar] = function.with_attr("tir_var_upper_bound", self.bounds)
        return mod


@visitor
class _Operators(PyExprVisitor):
    """Whether any call is one of this project's operators."""

    found = False

    def visit_call_(self, call: relax.Call) -> None:
        super().visit_call_(call)
        self.found = self.found or (isinstance(call.op, tvm.ir.Op) and call.op.name.startswith(_PREFIX))


def has_operators(mod: tvm.IRModule) -> bool:
    """Whether a module holds operators of this project."""
    search = _Operators()
    for function in mod.functions.values():
        if isinstance(function, relax.Function):
            search.visit_expr(function)
    return search.found


def is_nvfp4(quantization: str | None) -> bool:
    """Whether MLC's quantization of that name is one of this project."""
    return any(entry.name == quantization for entry in ENTRIES)


def check_target(target: Target) -> None:
    """Refuse targets without kernels, and several architectures at once.

    Raises
    ------
    TargetError
        For anything but llvm and CUDA with one supported architecture (sm_90a counts as sm_90).
    """
    table_for(target)
    several = os.environ.get("MLC_MULTI_ARCH")
    if target.kind.name != "cuda" or several is None:
        return
    arch = get_arch(str(target.attrs["arch"]))
    names = {f"sm_{name.strip()}" for name in several.split(",")}
    if not names <= {arch.name, arch.compile_arch}:
        raise TargetError(
            f"MLC_MULTI_ARCH={several}: NVFP4 kernels of a library are chosen for one architecture, here "
            f"{arch.name}; unset it and compile a library for each"
        )


def compile_without_nvcc(target: Target) -> None:
    """Where there is no nvcc, let this project's compiler make machine code and PTX of MLC's own kernels, too.

    MLC's hook calls nvcc, and where TVM finds no driver it embeds CUDA source instead, for whoever loads the
    library to compile. Building the NVFP4 kernels has loaded TVM's CUDA runtime
    (:mod:`nvfp4_tvm.codegen.cuda_runtime`), so that the hook is called on any machine now.
    """
    if shutil.which("nvcc") is not None:
        return
    # Not sm_90a: MLC's kernels need nothing of it, and the PTX of sm_90 is portable
    arch = get_arch(str(target.attrs["arch"])).name
    logger.info("no nvcc on the path: MLC's kernels are compiled by NVRTC for %s", arch)
    tvm_ffi.register_global_func(
        CALLBACK, lambda source, *_: compile_machine_code(source, arch).fatbin, override=True
    )
