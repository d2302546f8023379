"""Relax operators ``nvfp4.dequantize``, ``nvfp4.pack``, ``nvfp4.matmul`` and their TensorIR definitions."""

from nvfp4_tvm.op.dequantize import dequantize, dequantize_packed
from nvfp4_tvm.op.matmul import matmul
from nvfp4_tvm.op.pack import pack
from nvfp4_tvm.op.take import take

__all__ = ["dequantize", "dequantize_packed", "matmul", "pack", "take"]
