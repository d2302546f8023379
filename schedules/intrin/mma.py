"""Tensor intrinsics of the mma.sync GEMM: fragments of ``mma.m16n8k16`` as ordinary registers with a lane axis.

A fragment is a ``local`` buffer [..., 32 lanes, registers]; lowering drops the lane axis because every access is
at ``threadIdx.x``. The weight is the A operand (16 rows of W), the activations are B (8 tokens), so that C holds
out.T. Each intrinsic is a pair: ``desc``, which TensorIR matches and which runs on llvm as it is, and ``impl``,
one warp's CUDA. Positions: PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type".

==============  =====================================================================================
``fill``        accumulators = 0
``mma``         accumulators += A x B, 16-bit operands in uint32 registers, fp32 accumulation
``decode``      a lane's words of rows g and g + 8 to the A fragments of two k16 steps
``scales``      block scales of rows g and g + 8 to pairs of equal halves
``load``        16 bytes of shared memory to four registers: the B operand of two k16 steps
``transpose``   8 x 8 of a 16-bit dtype: from a lane per row of W to a lane per token
==============  =====================================================================================
"""

from __future__ import annotations

from functools import cache

from tvm import tirx
from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T

from nvfp4_tvm.layout import LANES
from nvfp4_tvm.schedules.intrin import fp4_decode
from nvfp4_tvm.schedules.intrin.fp4_decode import decoded, decoded_scale, half_value
from nvfp4_tvm.schedules.intrin.mma_sync import PTX_TYPE, mma_name

_MMA = """
__device__ __forceinline__ void nvfp4_mma_{ptx}(
    float& c0, float& c1, float& c2, float& c3,
    unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {{
  asm("{instruction} "
      "{{%0,%1,%2,%3}},{{%4,%5,%6,%7}},{{%8,%9}},{{%0,%1,%2,%3}};"
      : "+f"(c0), "+f"(c1), "+f"(c2), "+f"(c3) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}}
"""
_LOAD = """
__device__ __forceinline__ void nvfp4_load(unsigned& r0, unsigned& r1, unsigned& r2, unsigned& r3, const void* p) {
  const uint4 v = *(const uint4*)p; r0 = v.x; r1 = v.y; r2 = v.z; r3 = v.w;
}
"""
# T is TVM's type of a 16-bit float
_TRANSPOSE = """
template <class T>
__device__ __forceinline__ void nvfp4_transpose(T& d0, T& d1, T s0, T s1) {
  unsigned v = *(unsigned short*)&s0 | (unsigned)*(unsigned short*)&s1 << 16;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %0;" : "+r"(v));
  const unsigned short low = v, high = v >> 16;
  d0 = *(const T*)&low; d1 = *(const T*)&high;
}
"""


def a_position(row: tirx.Expr, k: tirx.Expr) -> tuple[tirx.Expr, tirx.Expr]:
    """Lane and register of the A operand that hold (row, k); k % 2 is the half."""
    return 4 * (row % 8) + k % 8 // 2, row // 8 + 2 * (k // 8)


def b_position(token: tirx.Expr, k: tirx.Expr) -> tuple[tirx.Expr, tirx.Expr]:
    """Lane and register of the B operand that hold (k, token); k % 2 is the half."""
    return 4 * token + k % 8 // 2, k // 8


def c_origin(lane: tirx.Expr, register: tirx.Expr) -> tuple[tirx.Expr, tirx.Expr]:
    """(row, token) of an accumulator: its registers are (row g, g + 8) of token 2q, then of token 2q + 1.

    PTX has them by row; this way a gate and its up (8 rows apart in a tile) are neighbours.
    """
    return register % 2 * 8 + lane // 4, lane % 4 * 2 + register // 2


def turned_from(lane: tirx.Expr, element: tirx.Expr) -> tuple[tirx.Expr, tirx.Expr]:
    """Lane and element that hold, before `transpose`, what this lane and element hold after it."""
    return (lane % 4 * 2 + element) * 4 + lane // 8, lane // 4 % 2


@cache
def fill() -> str:
    """Register the intrinsic and return its name; so do the functions below."""

    @T.prim_func(s_tir=True)
    def desc(c: T.handle) -> None:
        C = T.match_buffer(c, (LANES, 4), "float32", scope="local", offset_factor=4)
        with T.sblock("root"):
            T.reads()
            T.writes(C[0:LANES, 0:4])
            for lane, r in T.grid(LANES, 4):
                with T.sblock("fill"):
                    vl, vr = T.axis.remap("SS", [lane, r])
                    C[vl, vr] = T.float32(0)

    @T.prim_func(s_tir=True)
    def impl(c: T.handle) -> None:
        C = T.match_buffer(c, (LANES, 4), "float32", scope="local", offset_factor=4)
        with T.sblock("root"):
            T.reads()
            T.writes(C[0:LANES, 0:4])
            for tx in T.thread_binding(0, LANES, "threadIdx.x"):
                for r in T.unroll(4):
                    C[tx, r] = T.float32(0)

    return _register("fill", desc, impl)


@cache
def mma(dtype: str) -> str:
    """``C[32, 4] += A[32, 4] x B[32, 2]``: one mma.m16n8k16."""
    name = f"nvfp4_mma_{PTX_TYPE[dtype]}"
    source = _MMA.format(ptx=PTX_TYPE[dtype], instruction=mma_name(dtype))

    @T.prim_func(s_tir=True)
    def desc(a: T.handle, b: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (LANES, 4), "uint32", scope="local", offset_factor=4)
        B = T.match_buffer(b, (LANES, 2), "uint32", scope="local", offset_factor=2)
        C = T.match_buffer(c, (LANES, 4), "float32", scope="local", offset_factor=4)
        with T.sblock("root"):
            T.reads(C[0:LANES, 0:4], A[0:LANES, 0:4], B[0:LANES, 0:2])
            T.writes(C[0:LANES, 0:4])
            for lane, r, k in T.grid(LANES, 4, 16):
                with T.sblock("mma"):
                    vl, vr, vk = T.axis.remap("SSR", [lane, r, k])
                    row, token = T.meta_var(c_origin(vl, vr))
                    la, ra = T.meta_var(a_position(row, vk))
                    lb, rb = T.meta_var(b_position(token, vk))
                    T.reads(C[vl, vr], A[la, ra], B[lb, rb])
                    T.writes(C[vl, vr])
                    C[vl, vr] = C[vl, vr] + half_value(A[la, ra], vk % 2, dtype) * half_value(
                        B[lb, rb], vk % 2, dtype
                    )

    @T.prim_func(s_tir=True)
    def impl(a: T.handle, b: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (LANES, 4), "uint32", scope="local", offset_factor=4)
        B = T.match_buffer(
            b, (LANES, 2), "uint32", scope="local", offset_factor=2, strides=[T.int32(), T.int32()]
        )
        C = T.match_buffer(c, (LANES, 4), "float32", scope="local", offset_factor=4)
        with T.sblock("root"):
            T.reads(C[0:LANES, 0:4], A[0:LANES, 0:4], B[0:LANES, 0:2])
            T.writes(C[0:LANES, 0:4])
            for tx in T.thread_binding(0, LANES, "threadIdx.x"):
                T.evaluate(
                    T.cuda.func_call(
                        name,
                        C[tx, 0],
                        C[tx, 2],
                        C[tx, 1],
                        C[tx, 3],
                        A[tx, 0],
                        A[tx, 1],
                        A[tx, 2],
                        A[tx, 3],
                        B[tx, 0],
                        B[tx, 1],
                        source_code=source,
                    )
                )

    return _register(f"mma_{dtype}", desc, impl)


@cache
def decode(dtype: str) -> str:
    """``fragments[2 (k16 step), 32, 4]`` of ``words[2 (row half), 32, 1]`` and ``scales[32, 2 (row half)]``."""
    name, source = fp4_decode.decode_name(dtype), fp4_decode.cuda_decoder(dtype)

    @T.prim_func(s_tir=True)
    def desc(w: T.handle, s: T.handle, f: T.handle) -> None:
        W = T.match_buffer(w, (2, LANES, 1), "uint32", scope="local", offset_factor=1)
        S = T.match_buffer(s, (LANES, 2), "uint32", scope="local", offset_factor=2)
        F = T.match_buffer(f, (2, LANES, 4), "uint32", scope="local", offset_factor=4)
        with T.sblock("root"):
            T.reads(W[0:2, 0:LANES, 0], S[0:LANES, 0:2])
            T.writes(F[0:2, 0:LANES, 0:4])
            for j, lane, r in T.grid(2, LANES, 4):
                with T.sblock("decode"):
                    vj, vl, vr = T.axis.remap("SSS", [j, lane, r])
                    T.reads(W[vr % 2, vl, 0], S[vl, vr % 2])
                    T.writes(F[vj, vl, vr])
                    F[vj, vl, vr] = decoded(W[vr % 2, vl, 0], vj * 2 + vr // 2, S[vl, vr % 2], dtype)

    @T.prim_func(s_tir=True)
    def impl(w: T.handle, s: T.handle, f: T.handle) -> None:
        W = T.match_buffer(
            w,
            (2, LANES, 1),
            "uint32",
            scope="local",
            offset_factor=1,
            strides=[T.int32(), T.int32(), T.int32()],
        )
        S = T.match_buffer(s, (LANES, 2), "uint32", scope="local", offset_factor=2)
        F = T.match_buffer(f, (2, LANES, 4), "uint32", scope="local", offset_factor=4)
        with T.sblock("root"):
            T.reads(W[0:2, 0:LANES, 0], S[0:LANES, 0:2])
            T.writes(F[0:2, 0:LANES, 0:4])
            for tx in T.thread_binding(0, LANES, "threadIdx.x"):
                for h in T.unroll(2):
                    T.evaluate(
                        T.cuda.func_call(
                            name,
                            F[0, tx, h],
                            F[0, tx, 2 + h],
                            F[1, tx, h],
                            F[1, tx, 2 + h],
                            W[h, tx, 0],
                            S[tx, h],
                            source_code=source,
                        )
                    )

    return _register(f"decode_{dtype}", desc, impl)


@cache
def scales(dtype: str) -> str:
    """``scales[32, 2 (row half)]`` of ``bytes[32]`` as `fp4_decode.scale_bytes` leaves them."""
    name, source = fp4_decode.scale_pair_name(dtype), fp4_decode.cuda_decoder(dtype)

    @T.prim_func(s_tir=True)
    def desc(y: T.handle, s: T.handle) -> None:
        Y = T.match_buffer(y, (LANES,), "uint32", scope="local", offset_factor=1)
        S = T.match_buffer(s, (LANES, 2), "uint32", scope="local", offset_factor=2)
        with T.sblock("root"):
            T.reads(Y[0:LANES])
            T.writes(S[0:LANES, 0:2])
            for lane, h in T.grid(LANES, 2):
                with T.sblock("scales"):
                    vl, vh = T.axis.remap("SS", [lane, h])
                    T.reads(Y[vl])
                    T.writes(S[vl, vh])
                    S[vl, vh] = decoded_scale(Y[vl], vh, dtype)

    @T.prim_func(s_tir=True)
    def impl(y: T.handle, s: T.handle) -> None:
        Y = T.match_buffer(y, (LANES,), "uint32", scope="local", offset_factor=1)
        S = T.match_buffer(s, (LANES, 2), "uint32", scope="local", offset_factor=2)
        with T.sblock("root"):
            T.reads(Y[0:LANES])
            T.writes(S[0:LANES, 0:2])
            for tx in T.thread_binding(0, LANES, "threadIdx.x"):
                T.evaluate(T.cuda.func_call(name, S[tx, 0], S[tx, 1], Y[tx], source_code=source))

    return _register(f"scales_{dtype}", desc, impl)


@cache
def load() -> str:
    """``registers[4]`` of eight consecutive 16-bit numbers in shared memory; of one lane, not of a warp."""

    @T.prim_func(s_tir=True)
    def desc(x: T.handle, r: T.handle) -> None:
        X = T.match_buffer(x, (8,), "uint16", scope="shared.dyn", offset_factor=8)
        R = T.match_buffer(r, (4,), "uint32", scope="local", offset_factor=4)
        with T.sblock("root"):
            T.reads(X[0:8])
            T.writes(R[0:4])
            for i in T.serial(4):
                with T.sblock("load"):
                    vi = T.axis.spatial(4, i)
                    T.reads(X[vi * 2 : vi * 2 + 2])
                    T.writes(R[vi])
                    R[vi] = register_of(X[vi * 2], X[vi * 2 + 1])

    @T.prim_func(s_tir=True)
    def impl(x: T.handle, r: T.handle) -> None:
        X = T.match_buffer(x, (8,), "uint16", scope="shared.dyn", offset_factor=8)
        R = T.match_buffer(r, (4,), "uint32", scope="local", offset_factor=4)
        with T.sblock("root"):
            T.reads(X[0:8])
            T.writes(R[0:4])
            T.evaluate(
                T.cuda.func_call("nvfp4_load", R[0], R[1], R[2], R[3], T.address_of(X[0]), source_code=_LOAD)
            )

    return _register("load", desc, impl)


@cache
def transpose(dtype: str) -> str:
    """``tokens[32, 2]`` of ``rows[32, 2]``.

    Lane 4g + q has row g of tokens 2q and 2q + 1 before, and rows 2q and 2q + 1 of token g after.
    """

    @T.prim_func(s_tir=True)
    def desc(x: T.handle, y: T.handle) -> None:
        X = T.match_buffer(x, (LANES, 2), dtype, scope="local", offset_factor=2)
        Y = T.match_buffer(y, (LANES, 2), dtype, scope="local", offset_factor=2)
        with T.sblock("root"):
            T.reads(X[0:LANES, 0:2])
            T.writes(Y[0:LANES, 0:2])
            for lane, e in T.grid(LANES, 2):
                with T.sblock("transpose"):
                    vl, ve = T.axis.remap("SS", [lane, e])
                    source, element = T.meta_var(turned_from(vl, ve))
                    T.reads(X[source, element])
                    T.writes(Y[vl, ve])
                    Y[vl, ve] = X[source, element]

    @T.prim_func(s_tir=True)
    def impl(x: T.handle, y: T.handle) -> None:
        X = T.match_buffer(x, (LANES, 2), dtype, scope="local", offset_factor=2)
        Y = T.match_buffer(y, (LANES, 2), dtype, scope="local", offset_factor=2)
        with T.sblock("root"):
            T.reads(X[0:LANES, 0:2])
            T.writes(Y[0:LANES, 0:2])
            for tx in T.thread_binding(0, LANES, "threadIdx.x"):
                T.evaluate(
                    T.cuda.func_call(
                        "nvfp4_transpose", Y[tx, 0], Y[tx, 1], X[tx, 0], X[tx, 1], source_code=_TRANSPOSE
                    )
                )

    return _register(f"transpose_{dtype}", desc, impl)


def register_of(low: tirx.Expr, high: tirx.Expr) -> tirx.Expr:
    """Two uint16 in one uint32."""
    return low.astype("uint32") | (high.astype("uint32") << tirx.const(16, "uint32"))


def _register(name: str, desc: tirx.PrimFunc, impl: tirx.PrimFunc) -> str:
    name = f"nvfp4.{name}"
    TensorIntrin.register(name, desc, impl, override=True)
    return name
