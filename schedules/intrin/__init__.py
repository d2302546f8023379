"""Tensor intrinsics and the FP4 decoders they share."""
