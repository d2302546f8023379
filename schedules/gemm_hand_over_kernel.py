"""How blocks of the wgmma GEMMs that share a tile hand its sums over.

Sums go through global memory: a block stores its accumulators and then, per warp, a flag (release); the block that
finishes the tile polls the flags (acquire) and adds them in order. The launch before sets the flags to zero.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from nvfp4_tvm.schedules import stream_k
from nvfp4_tvm.schedules.activation_layout import PDL
from nvfp4_tvm.schedules.gemm_store_kernel import Inline

#: Tokens of a chunk of accumulators.
_CHUNK = 8
#: Chunks that are read from memory before they are added: enough to hide the latency.
_BATCH = 8
_ZERO_THREADS = 1024


def select(condition: Any, a: Any, b: Any) -> Any:
    """`stream_k.Select` for expressions."""
    return T.if_then_else(condition, a, b)


# fmt: off
def hand_over(tokens: int) -> tuple[Inline, Inline]:
    """Return what gives a block's sums of a tile to a later block, and what takes those of earlier ones.

    ``give(acc, partials, flags, block, tx)`` and ``take(acc, partials, flags, block, first, units, sharing, tx)``
    with the tile's first block (:mod:`.stream_k`).
    """
    chunks = tokens // _CHUNK

    @T.inline
    def give(acc, partials, flags, block, tx):
        for j in T.unroll(chunks):
            T.ptx["st.global.cg.v4.f32"](partials.ptr_to([block, j, tx, 0]), acc[j * 4], acc[j * 4 + 1], acc[j * 4 + 2], acc[j * 4 + 3])
        T.ptx.fence.acq_rel.gpu()
        T.cuda.warp_sync()
        if tx % 32 == 0:
            T.ptx["st.release.gpu.global.u32"](flags.ptr_to([block, tx // 32]), T.uint32(1))

    @T.inline
    def take(acc, partials, flags, block, first, units, sharing, tx):
        flag = T.alloc_local((1,), "uint32")
        other = T.alloc_local((_BATCH, 4), "float32")
        for o in T.serial((block - first + 31) // 32):
            polled: T.int32 = first + o * 32 + tx % 32
            if polled < block:
                if stream_k.first_unit(polled + 1, units, sharing, select) > stream_k.first_unit(polled, units, sharing, select):
                    flag[0] = T.uint32(0)
                    while flag[0] == T.uint32(0):
                        T.ptx["ld.acquire.gpu.global.u32"](flag[0], flags.ptr_to([polled, tx // 32]))
            T.cuda.warp_sync()
        for o in T.serial(block - first):
            added: T.int32 = first + o
            if stream_k.first_unit(added + 1, units, sharing, select) > stream_k.first_unit(added, units, sharing, select):
                for batch in T.unroll((chunks + (_BATCH - 1)) // _BATCH):
                    for j in T.unroll(_BATCH):
                        if batch * _BATCH + j < chunks:
                            T.ptx["ld.global.cg.v4.f32"](other[j, 0], other[j, 1], other[j, 2], other[j, 3], partials.ptr_to([added, batch * _BATCH + j, tx, 0]))
                    for j in T.unroll(_BATCH):
                        if batch * _BATCH + j < chunks:
                            for e in T.unroll(4):
                                acc[(batch * _BATCH + j) * 4 + e] = acc[(batch * _BATCH + j) * 4 + e] + other[j, e]

    return give, take


def zero_flags_kernel(shape: tuple[int, int]) -> PrimFunc:
    """Return the launch ``f(flags[shape])`` that sets the flags of the one that follows to zero: one block."""
    count = shape[0] * shape[1]

    @T.prim_func
    def zero(flags: T.Buffer(shape, "uint32")):
        T.device_entry()
        bx = T.cta_id([1])
        tx = T.thread_id([_ZERO_THREADS])
        T.ptx.griddepcontrol.launch_dependents()
        T.ptx.griddepcontrol.wait()
        for f in T.serial((count + (_ZERO_THREADS - 1)) // _ZERO_THREADS):
            if f * _ZERO_THREADS + tx < count:
                flags[(f * _ZERO_THREADS + tx) // shape[1], (f * _ZERO_THREADS + tx) % shape[1]] = T.uint32(0)
    return zero.with_attr(*PDL)
# fmt: on
