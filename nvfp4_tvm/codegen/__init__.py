"""CUDA machine code in compiled libraries: NVRTC, fatbins, and TVM's CUDA runtime without a driver."""

from nvfp4_tvm.codegen.cuda_runtime import load_cuda_runtime
from nvfp4_tvm.codegen.machine_code import (
    BuildLog,
    MachineCode,
    ResourceUsage,
    compile_machine_code,
    cuda_machine_code,
    resource_usage,
)
from nvfp4_tvm.codegen.nvrtc import CompileError

__all__ = [
    "BuildLog",
    "CompileError",
    "MachineCode",
    "ResourceUsage",
    "compile_machine_code",
    "cuda_machine_code",
    "load_cuda_runtime",
    "resource_usage",
]
