"""NVFP4 checkpoints on GPUs without FP4 units, and on CPUs, compiled by Apache TVM.

>>> import nvfp4_tvm
>>> nvfp4_tvm.compile("checkpoint", "compiled", target="cuda:sm_89")
>>> runner = nvfp4_tvm.load("compiled")
>>> runner.generate([1, 2, 3], max_new_tokens=16)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nvfp4_tvm._pins import check_versions

check_versions()

__version__ = "0.1.0"

# Imported on first use: `import nvfp4_tvm` alone does not load TVM.
_LAZY = {
    "compile": "nvfp4_tvm.compiler",
    "load": "nvfp4_tvm.runtime.folder",
    "open_checkpoint": "nvfp4_tvm.checkpoint",
    "pipeline": "nvfp4_tvm.passes.pipeline",
    "quantize_checkpoint": "nvfp4_tvm.quantize",
}

__all__ = ["compile", "load", "open_checkpoint", "pipeline", "quantize_checkpoint"]

if TYPE_CHECKING:
    from nvfp4_tvm.checkpoint import open_checkpoint
    from nvfp4_tvm.compiler import compile
    from nvfp4_tvm.passes.pipeline import pipeline
    from nvfp4_tvm.quantize import quantize_checkpoint
    from nvfp4_tvm.runtime.folder import load


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'nvfp4_tvm' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
