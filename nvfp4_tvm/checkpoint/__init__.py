"""Checkpoint readers: one file a format."""

from nvfp4_tvm.checkpoint.base import LayerInfo, NVFP4Tensor, open_checkpoint
from nvfp4_tvm.checkpoint.reader import Checkpoint

__all__ = ["Checkpoint", "LayerInfo", "NVFP4Tensor", "open_checkpoint"]
