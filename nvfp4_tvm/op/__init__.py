"""Relax operators on NVFP4 weights (``nvfp4.matmul`` and others), and their TensorIR definitions."""

from nvfp4_tvm.op.dequantize import dequantize, dequantize_packed
from nvfp4_tvm.op.grouped_matmul import grouped_matmul
from nvfp4_tvm.op.matmul import matmul
from nvfp4_tvm.op.pack import pack
from nvfp4_tvm.op.take import take

__all__ = ["dequantize", "dequantize_packed", "grouped_matmul", "matmul", "pack", "take"]
