"""Relax passes from a checkpoint's graph to scheduled kernels: one pass a file."""
