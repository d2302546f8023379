"""The instruction ``mma.m16n8k16`` (PTX ISA) with a weight as its A operand, and the loads that feed it.

:mod:`.mma` has its fragments as tensor intrinsics; kernels written as scripts call it by :func:`mma_name`.
"""

from __future__ import annotations

from nvfp4_tvm import layout

#: Rows of a weight, its m: a tile of the packed layout is one. Rows of activations, its n.
ROWS = layout.TILE_N
TOKENS = 8
#: PTX names of the operand types.
PTX_TYPE = {"bfloat16": "bf16", "float16": "f16"}

# Weights are read once: they should neither evict activations from the L1 cache nor wait for whole lines there;
# the L2 may fetch 128 bytes, since all of them will be used.
LOAD_WEIGHTS = "ld.global.nc.L1::no_allocate.L2::128B"
# Coherent: with programmatic dependent launch the predecessor writes x while the kernel runs.
LOAD_X = "ld.global.v4.u32"


def mma_name(dtype: str) -> str:
    """Return the instruction for two operands of a 16-bit dtype, accumulated in float32."""
    ptx = PTX_TYPE[dtype]
    return f"mma.sync.aligned.m{ROWS}n{TOKENS}k16.row.col.f32.{ptx}.{ptx}.f32"
