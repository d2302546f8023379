"""The pipeline: NVFP4 passes composed with TVM's own, from a frontend's module to what ``relax.build`` lowers.

:func:`weight_passes` turn canonical weights into packed ones (and make ``transform_params``);
:func:`pipeline` is those followed by kernel choice and TVM's passes for the target. Use it as
``relax.build(mod, target, relax_pipeline=pipeline(target))``.
"""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.relax.backend.cpu_generic import pipeline as cpu_pipeline
from tvm.relax.backend.cuda import pipeline as cuda_pipeline
from tvm.s_tir import dlight as dl
from tvm.target import Target

from nvfp4_tvm.codegen.machine_code import BuildLog
from nvfp4_tvm.errors import TargetError
from nvfp4_tvm.passes.fold_weights import FoldNVFP4Weights
from nvfp4_tvm.passes.fuse_epilogue import FuseNVFP4Epilogue
from nvfp4_tvm.passes.lower_dense import LowerDense
from nvfp4_tvm.passes.lower_dequantize import LowerNVFP4Dequantize
from nvfp4_tvm.passes.lower_matmul import LowerNVFP4Matmul
from nvfp4_tvm.passes.rewrite_matmul import RewriteNVFP4Matmul
from nvfp4_tvm.passes.sum_in_float32 import SumInFloat32


def weight_passes(target: Target | None = None) -> list[tvm.transform.Pass]:
    """Rewrite matmuls to packed weights and fold or lift the packing.

    With a CUDA target, epilogues are fused in between, for which gate_up weights are packed in another order of
    rows. Without a target, packed weights are those of every target.
    """
    return [
        RewriteNVFP4Matmul(),
        *([] if target is None else [FuseNVFP4Epilogue(target)]),
        FoldNVFP4Weights(),
        relax.transform.CanonicalizeBindings(),
        relax.transform.DeadCodeElimination(),
    ]


def _schedule_passes(target: Target) -> list[tvm.transform.Pass]:
    # TVM's passes for CUDA schedule with dlight as they legalise; those for the CPU leave naive loops.
    if target.kind.name == "llvm":
        return [dl.ApplyDefaultSchedule(dl.cpu.GEMV(), dl.cpu.Reduction())]
    return []


#: TVM's default passes by kind of target.
_TVM = {"llvm": cpu_pipeline, "cuda": cuda_pipeline}


def kernel_passes(target: Target, log: BuildLog | None = None) -> list[tvm.transform.Pass]:
    """Lower operators on packed weights to this project's kernels for ``target``.

    What is left of the module is up to any pipeline. Resources of our CUDA kernels are appended to ``log``.
    """
    return [LowerNVFP4Matmul(target, log), LowerNVFP4Dequantize(target, log)]


def target_passes(target: Target, log: BuildLog | None = None) -> list[tvm.transform.Pass]:
    """Lower a module with packed weights for ``target``: our kernels first, then TVM's default passes.

    Resources of our CUDA kernels are appended to ``log``.
    """
    if target.kind.name not in _TVM:
        raise TargetError(f"target {target.kind.name}: not supported, expected one of {', '.join(_TVM)}")
    tvm_pipeline = _TVM[target.kind.name]
    return [
        *kernel_passes(target, log),
        LowerDense(target, log),
        *tvm_pipeline.library_dispatch_passes(target),
        SumInFloat32(),
        *tvm_pipeline.legalize_passes(target),
        relax.transform.DeadCodeElimination(),
        *_schedule_passes(target),
        *tvm_pipeline.dataflow_lower_passes(target),
        *tvm_pipeline.finalize_passes(target),
    ]


def pipeline(target: Target | str | None = None, log: BuildLog | None = None) -> tvm.transform.Pass:
    """Return the whole pipeline for ``target``, or for the target current when it runs.

    Resources of our CUDA kernels are appended to ``log``, if there is one, when it runs.

    Raises
    ------
    TargetError
        When it runs for a target without NVFP4 kernels.
    """

    @tvm.transform.module_pass(opt_level=0, name="nvfp4_tvm.pipeline")
    def run(mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        chosen = Target(target) if isinstance(target, str) else target or Target.current(allow_none=False)
        with chosen:
            return tvm.transform.Sequential([*weight_passes(chosen), *target_passes(chosen, log)])(mod)

    return run
