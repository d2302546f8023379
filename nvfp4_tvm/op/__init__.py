"""Relax operators nvfp4.dequantize, nvfp4.pack, nvfp4.matmul."""
