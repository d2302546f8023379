"""What of a CUDA device of torch decides over its kernels: its architecture, and TVM's runtime beside torch's."""

from __future__ import annotations

import torch

from nvfp4_tvm.arch import Arch, arch_of_capability
from nvfp4_tvm.codegen.cuda_runtime import load_cuda_runtime
from nvfp4_tvm.errors import TargetError


def device_arch(device: torch.device) -> Arch:
    """Return the entry of the architecture table for a CUDA device.

    Raises
    ------
    TargetError
        If there is none: the device is older than sm_80 or has FP4 units of its own.
    """
    major, minor = torch.cuda.get_device_capability(device)
    return arch_of_capability(f"{major}.{minor}")


def require_cuda_runtime() -> None:
    """Load TVM's CUDA runtime, which comes before anything is built or run.

    Raises
    ------
    TargetError
        If it does not load beside this driver.
    """
    if not load_cuda_runtime():
        raise TargetError(
            "TVM's CUDA runtime does not load beside this driver: run pip install 'nvidia-cuda-runtime>=13,<14'"
        )
