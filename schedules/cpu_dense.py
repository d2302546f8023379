"""Plain linear layers on the CPU: what a checkpoint leaves unquantized, such as the head.

``f(x[M, K], w[N, K], out[M, N])``, accumulated in float32: TVM's CPU pipeline has no schedule for it and would
first write the transposed weight to memory at every call. Vectors run along K, where both operands are
contiguous; a tile of rows shares each load.
"""

from __future__ import annotations

from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.tirx import Buffer, Expr, PrimFunc
from tvm.tirx.script.builder import ir as T

from nvfp4_tvm.schedules.cpu_common import horizontal_sum, load, named, store, zeros
from nvfp4_tvm.schedules.dense_problem import DenseProblem
from nvfp4_tvm.schedules.intrin.cpu_decode import decoder_for

#: Rows of x and rows of w in a register tile, for M = 1 and for more.
TILE_ONE = (1, 8)
TILE_MANY = (4, 4)


def dense(problem: DenseProblem, target: Target) -> PrimFunc:
    """Return the scheduled kernel for an llvm target."""
    lanes = decoder_for(target).lanes
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("cpu_dense")
        T.func_attr({"tirx.is_scheduled": 1, "tirx.noalias": True})
        M = named("M", T.int64())
        N = named("N", T.int64()) if problem.N is None else problem.N
        x, w, out = (
            named(name, T.match_buffer(T.arg(f"{name}_handle", T.handle()), shape, dtype))
            for name, shape, dtype in (
                ("x", (M, problem.K), problem.dtype),
                ("w", (N, problem.K), problem.dtype),
                ("out", (M, N), problem.out_dtype),
            )
        )
        with T.If(M == 1):
            with T.Then():
                _tiles(problem, M, N, x, w, out, lanes, *TILE_ONE)
            with T.Else():
                _tiles(problem, M, N, x, w, out, lanes, *TILE_MANY)
    return builder.get()


def _tiles(
    problem: DenseProblem,
    M: Expr,
    N: Expr | int,
    x: Buffer,
    w: Buffer,
    out: Buffer,
    lanes: int,
    tile_m: int,
    tile_n: int,
) -> None:
    with (
        T.parallel((N + (tile_n - 1)) // tile_n) as block,
        T.serial((M + (tile_m - 1)) // tile_m) as row_block,
    ):
        # Rows past the end repeat the last one and are not stored.
        ms = [row_block * tile_m + i for i in range(tile_m)]
        ns = [block * tile_n + i for i in range(tile_n)]
        inside_m = [T.min(m, M - 1) for m in ms] if tile_m > 1 else ms
        inside_n = [T.min(n, N - 1) for n in ns] if problem.N is None or problem.N % tile_n else ns
        sums = named("sums", T.alloc_buffer((tile_m, tile_n, lanes), "float32"))
        # Operands widen on their way into buffers: TVM 0.27 does not legalise a bfloat16 cast in a binding.
        xs = named("xs", T.alloc_buffer((tile_m, lanes), "float32"))
        ws = named("ws", T.alloc_buffer((tile_n, lanes), "float32"))
        for i in range(tile_m):
            for j in range(tile_n):
                store(sums, zeros(lanes), i, j, 0)
        with T.serial(problem.K // lanes) as step:
            _widen(x, xs, inside_m, step * lanes, lanes)
            _widen(w, ws, inside_n, step * lanes, lanes)
            _multiply(xs, ws, sums, lanes)
        for k in range(problem.K - problem.K % lanes, problem.K):
            _widen(x, xs, inside_m, k, 1)
            _widen(w, ws, inside_n, k, 1)
            _multiply(xs, ws, sums, 1)
        for i, m in enumerate(ms):
            for j, n in enumerate(ns):
                total = horizontal_sum(T.Bind(load(sums, i, j, 0, lanes=lanes)))
                with T.If(T.And(m < M, n < N)), T.Then():
                    T.buffer_store(out, T.cast(total, problem.out_dtype), [m, n])


def _widen(source: Buffer, target: Buffer, rows: list[Expr], k: Expr | int, lanes: int) -> None:
    """Copy ``lanes`` elements at column k of each row as float32."""
    wide = f"float32x{lanes}" if lanes > 1 else "float32"
    for i, row in enumerate(rows):
        _put(target, T.cast(load(source, row, k, lanes=lanes), wide), i, 0, lanes=lanes)


def _multiply(xs: Buffer, ws: Buffer, sums: Buffer, lanes: int) -> None:
    """Add ``lanes`` products to every sum of the tile."""
    for i in range(int(xs.shape[0])):
        for j in range(int(ws.shape[0])):
            product = load(xs, i, 0, lanes=lanes) * load(ws, j, 0, lanes=lanes)
            _put(sums, load(sums, i, j, 0, lanes=lanes) + product, i, j, 0, lanes=lanes)


def _put(buffer: Buffer, value: Expr, *index: int, lanes: int) -> None:
    if lanes > 1:
        store(buffer, value, *index)
    else:
        T.buffer_store(buffer, value, list(index))
