"""NVFP4 checkpoints on GPUs without FP4 units, and on CPUs, compiled by Apache TVM."""

from nvfp4_tvm._pins import check_versions

check_versions()

__version__ = "0.1.0"
