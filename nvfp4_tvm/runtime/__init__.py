"""Loading and running a compiled folder."""

from nvfp4_tvm.runtime.runner import GenerationResult, Runner
from nvfp4_tvm.runtime.sampling import Sampling

__all__ = ["GenerationResult", "Runner", "Sampling"]
