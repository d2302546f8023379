"""The streaming GEMM kernel: out^T = W x^T on ``mma.m16n8k16``, each weight read and decoded once for many tokens.

A block computes tiles of ``16 * tiles * warps`` weight rows by ``tokens`` activation rows, and runs of 128-blocks of
k of them as :mod:`nvfp4_tvm.schedules.stream_k` hands them out. The tile is wide in weight rows because every row
of tiles reads all activations again, through the L2.

- Weights: each thread copies the words and scales that it will decode itself (:mod:`nvfp4_tvm.layout`) by cp.async
  into a ring of its own slots, so that no barrier guards them. (Straight to registers some 128-blocks ahead is slower:
  a warp has six scoreboards, and reads of shared memory end up waiting on the one of these loads.) Only constants are
  read this way: it starts before the preceding launch has ended.
- Activations: all threads copy a 128-block of the tile by cp.async into a ring in shared memory; rows beyond M and
  columns beyond K become zeros that were never read. A token has 256 bytes in four 64-byte pieces, one a quad lane;
  16-byte chunk i of piece q of row r stands at slot ``i ^ (r % 2 + 2 * (q // 2))``, so that the eight lanes of a
  quarter warp touch all banks. One 16-byte load serves two mma.
- A 128-block is four steps of 32 k. The fragments of the next step (or of the next group of tiles) are decoded
  while the tensor cores work on the present ones.
- Sums of a tile that several blocks share go through global memory: a block stores its accumulators and then, per
  warp, a flag (release); the block that finishes the tile polls the flags (acquire) and adds them in order. A launch
  before sets the flags to zero.
- Epilogue: 16-bit outputs are transposed in registers, 8 x 8 by movmatrix and then in quads, to 16-byte stores;
  others, and rows of ``out`` that are not 16-byte aligned, are stored one by one.

The grid is made for the largest GPU of the architecture. Blocks beyond those that the GPU at hand can hold end at
once: work is divided by what the special register ``%nsmid`` says.
"""

# mypy: disable-error-code="valid-type"
# TVMScript's annotations are values

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from nvfp4_tvm import layout
from nvfp4_tvm.schedules import stream_k
from nvfp4_tvm.schedules.activation_layout import PDL
from nvfp4_tvm.schedules.base import MatmulProblem
from nvfp4_tvm.schedules.epilogue import row_value, silu
from nvfp4_tvm.schedules.gemm_stream_config import MMA_TOKENS, StreamConfig
from nvfp4_tvm.schedules.intrin.fp4_decode import cuda_decoder, decode_name, scales_name
from nvfp4_tvm.schedules.intrin.mma import PTX_TYPE

_PACK = {"bfloat16": "cvt.rn.bf16x2.f32", "float16": "cvt.rn.f16x2.f32"}
#: Steps of a 128-block: a lane's 32 consecutive k are four words.
_STEPS = layout.WORDS_PER_LANE
#: Tokens whose activations are loaded ahead of their mma, in eights; and accumulators read before they are added.
_X_BATCH, _SUM_BATCH = 2, 16
_ZERO_THREADS = 1024
#: Integers of a block's plan: segments, of them cut, the last cut tile, first and last unit, cut tiles, blocks that
#: work, blocks that share cut tiles.
_PLAN = 8

#: PTX ISA, "Special Registers": at least the number of multiprocessors.
_PROCESSORS = """
__device__ __forceinline__ void nvfp4_processors(int& n) { asm("mov.u32 %0, %%nsmid;" : "=r"(n)); }
"""
#: Hides where a value comes from: addresses made of it are computed where they are used, not kept in registers.
_RENEW = 'static __device__ __forceinline__ void nvfp4_renew(int& v) { asm volatile("" : "+r"(v)); }\n'
#: Four registers of four lanes of a quad, transposed: two rounds of swaps between neighbours.
_QUAD = """
__device__ __forceinline__ void nvfp4_quad_swap(unsigned& a, unsigned& b, int distance) {
  const bool upper = threadIdx.x & distance;
  const unsigned got = __shfl_xor_sync(0xffffffffu, upper ? a : b, distance);
  if (upper) a = got; else b = got;
}
__device__ __forceinline__ void nvfp4_quad_transpose(unsigned& r0, unsigned& r1, unsigned& r2, unsigned& r3) {
  nvfp4_quad_swap(r0, r1, 1); nvfp4_quad_swap(r2, r3, 1);
  nvfp4_quad_swap(r0, r2, 2); nvfp4_quad_swap(r1, r3, 2);
}
"""


def _select(condition: Any, a: Any, b: Any) -> Any:
    return T.if_then_else(condition, a, b)


def zero_flags_kernel(grid: int, warps: int, pdl: bool) -> PrimFunc:
    """Return the launch ``f(flags[grid, warps])`` that sets them to zero."""
    number = grid * warps

    @T.prim_func
    def zero_flags(flags: T.Buffer((grid, warps), "uint32")):
        T.device_entry()
        bx = T.cta_id([-(-number // _ZERO_THREADS)])
        tx = T.thread_id([_ZERO_THREADS])
        if pdl:
            T.ptx.griddepcontrol.launch_dependents()
            T.ptx.griddepcontrol.wait()
        index: T.let = bx * _ZERO_THREADS + tx
        if index < number:
            flags[index // warps, index % warps] = T.uint32(0)

    return zero_flags.with_attr(*PDL) if pdl else zero_flags


def stream_kernel(problem: MatmulProblem, config: StreamConfig, sms: int, pdl: bool) -> PrimFunc:
    """Return ``f(x, words, scales, global_scale[, bias][, residual][, partials, flags], out)``.

    Parameters
    ----------
    problem : MatmulProblem
        bfloat16 or float16 activations.
    config : StreamConfig
        The tile.
    sms : int
        Multiprocessors of the largest GPU to launch for.
    pdl : bool
        Whether the kernel takes part in programmatic dependent launch.
    """
    N, K, out_N = problem.N, problem.K, problem.out_N
    n_tiles, blocks = layout.tiles(N, K)
    tokens, warps, tiles_w = config.tokens, config.warps, config.tiles
    stages, w_stages = config.x_stages, config.w_stages
    lead = max(w_stages, stages - 1)  # groups of copies before the first 128-block
    row_tiles = -(-n_tiles // config.row_tiles)
    grid, overhead, threads, cuts = config.grid(sms), config.overhead, config.threads, config.cuts(K)
    dtype, out_dtype = problem.x_dtype, problem.out_dtype
    mma = f"mma.sync.aligned.m16n8k16.row.col.f32.{PTX_TYPE[dtype]}.{PTX_TYPE[dtype]}.f32"
    source, decode, decode_scales = cuda_decoder(dtype), decode_name(dtype), scales_name(dtype)
    gated = problem.activation == "silu_mul"
    has_bias, has_residual = problem.bias, problem.residual
    halves = 1 if gated else 2  # groups of eight output columns of a tile
    columns = 8 * halves
    transposed = out_dtype in _PACK and out_N % 8 == 0
    eights = tokens // MMA_TOKENS
    early = config.early
    buffers = 1 + early
    group, groups = config.group, tiles_w // config.group
    pieces = _STEPS * groups  # of a 128-block: each decoded at a time
    batches = -(-eights // _X_BATCH)
    squares = eights * tiles_w * halves  # of 8 tokens by 8 output columns
    x_rows = threads // 16  # tokens that all threads copy at a time

    # fmt: off
    @T.prim_func
    def matmul(x_ptr: T.handle, words: T.Buffer(layout.words_shape(N, K), "uint32"), scales: T.Buffer(layout.scales_shape(N, K), "uint32"),
               global_scale: T.Buffer(layout.global_scale_shape(N), "float32"), bias: T.Buffer((N,), dtype), residual_ptr: T.handle,
               partials: T.Buffer(config.partials_shape(sms), "float32"), flags: T.Buffer((grid, warps), "uint32"), out_ptr: T.handle):
        M = T.int64()
        x = T.match_buffer(x_ptr, (M, K), dtype, align=16)
        out = T.match_buffer(out_ptr, (M, out_N), out_dtype, align=16)
        residual = T.match_buffer(residual_ptr, (M, out_N), out_dtype)
        T.device_entry()
        T.attr({"tirx.launch_bounds_min_blocks_per_sm": config.blocks_per_sm})
        block = T.cta_id([grid])
        tx = T.thread_id([threads])
        warp: T.let = tx // 32
        lane: T.let = tx % 32
        g: T.let = lane // 4
        q: T.let = lane % 4
        swizzle: T.let = g % 2 + q // 2 * 2
        pool = T.SMEMPool()
        x_ring = pool.alloc((stages, tokens, 16, 8), dtype, align=128)
        w_ring = pool.alloc((w_stages, warps, tiles_w, 2, layout.LANES, layout.WORDS_PER_LANE), "uint32", align=128)
        s_ring = pool.alloc((w_stages, warps, tiles_w, layout.LANES), "uint32", align=128)
        # How the work is divided; not in registers, of which the accumulators leave few
        plan = pool.alloc((_PLAN,), "int32", align=16)
        pool.commit()
        if tx == 0:
            processors = T.alloc_local((1,), "int32")
            T.evaluate(T.cuda.func_call("nvfp4_processors", processors[0], source_code=_PROCESSORS))
            # Variables, not lets: TVM substitutes lets and then simplifies nested quotients for a minute
            used: T.int32 = T.min(processors[0] * config.blocks_per_sm, grid)
            token_tiles: T.int32 = T.cast((M + (tokens - 1)) // tokens, "int32")
            tiles: T.int32 = token_tiles * row_tiles
            sharing: T.int32 = stream_k.sharing_blocks(tiles, used, _select)
            cut: T.int32 = stream_k.cut_tiles(tiles, sharing, blocks, used, overhead, _select) if cuts else 0
            units: T.int32 = cut * blocks
            begin: T.int32 = stream_k.first_unit(block, units, sharing, _select)
            end: T.int32 = stream_k.first_unit(block + 1, units, sharing, _select)
            last_cut: T.int32 = T.max(end - 1, 0) // blocks
            runs: T.int32 = T.if_then_else(end > begin, last_cut - begin // blocks + 1, 0)
            plan[0] = T.if_then_else(block < used, runs + stream_k.whole_tiles(tiles, cut, block, used), 0)
            plan[1] = runs
            plan[2] = last_cut
            plan[3] = begin
            plan[4] = end
            plan[5] = cut
            plan[6] = used
            plan[7] = sharing
        T.cuda.cta_sync()
        segments: T.int32 = plan[0]
        word = T.alloc_local((tiles_w, 2, 4), "uint32")
        scale_bytes = T.alloc_local((tiles_w,), "uint32")
        scale = T.alloc_local((tiles_w, 2, 2), "uint32")  # [tile][group][row g or g + 8]
        fragment = T.alloc_local((buffers, group, 2, 4), "uint32")
        x_part = T.alloc_local((eights, 4), "uint32")
        acc = T.alloc_local((tiles_w, eights, 4), "float32")
        other = T.alloc_local((_SUM_BATCH, 4), "float32")
        value = T.alloc_local((2, 2), "float32")  # [row half][token]
        row_scale = T.alloc_local((tiles_w, 2), "float32")
        row_bias = T.alloc_local((tiles_w, 2), dtype)
        packed = T.alloc_local((4,), "uint32")
        flag = T.alloc_local((1,), "uint32")
        token_here = T.alloc_local((1,), "int32")
        w_here = T.alloc_local((1,), "int32")
        slot: T.int32
        w_slot: T.int32
        tile: T.int32
        k_begin: T.int32
        k_end: T.int32
        w_tile: T.int32
        token_base: T.int32

        @T.inline
        def enter(segment):
            """The segment's tile and 128-blocks: cut tiles from the back, then whole ones."""
            is_cut: T.let = segment < plan[1]
            tile = T.if_then_else(is_cut, plan[2] - segment, plan[5] + (segment - plan[1]) * plan[6] + block)
            k_begin = T.if_then_else(is_cut, T.max(plan[3] - tile * blocks, 0), 0)
            k_end = T.if_then_else(is_cut, T.min(plan[4] - tile * blocks, blocks), blocks)
            token_tiles_: T.int32 = T.cast((M + (tokens - 1)) // tokens, "int32")
            w_tile = (tile // token_tiles_ * warps + warp) * tiles_w
            token_base = tile % token_tiles_ * tokens
            token_here[0] = token_base
            w_here[0] = w_tile

        @T.inline
        def copy_weight(into, k):
            """Rows of tiles beyond N are read from the last one."""
            T.evaluate(T.cuda.func_call("nvfp4_renew", w_here[0], source_code=_RENEW))
            for t in T.unroll(tiles_w):
                for h in T.unroll(2):
                    T.ptx["cp.async.cg.shared.global.L2::128B"](w_ring.ptr_to([into, warp, t, h, lane, 0]),
                                                                words.ptr_to([T.min(w_here[0] + t, n_tiles - 1), k, h, lane, 0]), 16)
                T.ptx["cp.async.ca.shared.global"](s_ring.ptr_to([into, warp, t, lane]), scales.ptr_to([T.min(w_here[0] + t, n_tiles - 1), k, lane]), 4)

        @T.inline
        def read_weight(pending):
            T.ptx["cp.async.wait_group"](pending)
            for t in T.unroll(tiles_w):
                for h in T.unroll(2):
                    T.ptx["ld.shared.v4.u32"](*[word[t, h, i] for i in range(4)], w_ring.ptr_to([w_slot, warp, t, h, lane, 0]))
                T.ptx["ld.shared.u32"](scale_bytes[t], s_ring.ptr_to([w_slot, warp, t, lane]))

        @T.inline
        def copy_x(into, k):
            T.evaluate(T.cuda.func_call("nvfp4_renew", token_here[0], source_code=_RENEW))
            for r in T.unroll(-(-tokens // x_rows)):
                row = T.meta_var(r * x_rows + tx // 16)
                column = T.meta_var(k * layout.TILE_K + tx % 16 * 8)
                if tokens % x_rows == 0 or row < tokens:
                    token: T.let = T.cast(token_here[0] + row, "int64")
                    T.ptx["cp.async.cg.shared.global.L2::128B"](
                        x_ring.ptr_to([into, row, tx % 16 // 4 * 4 + ((tx % 4) ^ (tx // 16 % 2 + tx % 16 // 8 * 2)), 0]),
                        x.ptr_to([T.min(token, M - 1), column if K % layout.TILE_K == 0 else T.min(column, K - 8)]), 16,
                        T.if_then_else(token < M if K % layout.TILE_K == 0 else T.And(token < M, column < K), T.uint32(16), T.uint32(0)))

        @T.inline
        def copy_first(weights):
            """Copy the first 128-blocks of a segment."""
            for p in T.unroll(lead):
                if weights and p < w_stages:
                    if k_begin + p < k_end:
                        copy_weight(p, k_begin + p)
                if p < stages - 1:
                    if k_begin + p < k_end:
                        copy_x(p, k_begin + p)
                T.ptx["cp.async.commit_group"]()

        @T.inline
        def read_scales():
            for t in T.unroll(tiles_w):
                T.evaluate(T.cuda.func_call(decode_scales, scale[t, 0, 0], scale[t, 0, 1], scale[t, 1, 0], scale[t, 1, 1],
                                            scale_bytes[t], source_code=source))

        @T.inline
        def read_piece(p):
            for t in T.unroll(group):
                for h in T.unroll(2):
                    T.evaluate(T.cuda.func_call(
                        decode, fragment[p % buffers, t, h, 0], fragment[p % buffers, t, h, 1], fragment[p % buffers, t, h, 2], fragment[p % buffers, t, h, 3],
                        word[p % groups * group + t, h, p // groups], scale[p % groups * group + t, p // groups // 2, h], source_code=""))

        @T.inline
        def read_x(i, batch):
            for e in T.unroll(_X_BATCH):
                if batch * _X_BATCH + e < eights:
                    T.ptx["ld.shared.v4.u32"](*[x_part[batch * _X_BATCH + e, z] for z in range(4)],
                                              x_ring.ptr_to([slot, (batch * _X_BATCH + e) * 8 + g, q * 4 + (i ^ swizzle), 0]))

        if pdl:
            T.ptx.griddepcontrol.launch_dependents()
        if segments > 0:
            enter(0)
            if pdl:
                for p in T.unroll(w_stages):
                    if k_begin + p < k_end:
                        copy_weight(p, k_begin + p)
        if pdl:
            T.ptx.griddepcontrol.wait()
        if segments > 0:
            copy_first(not pdl)
        for segment in T.serial(segments):
            slot = 0
            for t in T.unroll(tiles_w):
                for b in T.unroll(eights):
                    for z in T.unroll(4):
                        acc[t, b, z] = T.float32(0)
            w_slot = 0
            read_weight(lead - 1)
            read_scales()
            if early:
                read_piece(0)
            for k in T.serial(k_begin, k_end):
                T.ptx["cp.async.wait_group"](stages - 2)
                T.cuda.cta_sync()
                # Into the places of the 128-block before, which every warp has left, and of this one's weights
                if k + (stages - 1) < k_end:
                    copy_x(T.if_then_else(slot == 0, stages - 1, slot - 1), k + (stages - 1))
                if k + w_stages < k_end:
                    copy_weight(w_slot, k + w_stages)
                w_slot = T.if_then_else(w_slot == w_stages - 1, 0, w_slot + 1)
                T.ptx["cp.async.commit_group"]()
                for p in T.unroll(pieces):
                    if p % groups == 0:
                        read_x(p // groups, 0)
                    if not early:
                        read_piece(p)
                    elif p < pieces - 1:
                        read_piece(p + 1)
                    if p == pieces - 1:
                        read_weight(w_stages - 1)  # of the next 128-block; after the last one it is not used
                        read_scales()
                        if early:
                            read_piece(0)
                    for batch in T.unroll(batches):
                        if p % groups == 0:
                            if batch + 1 < batches:
                                read_x(p // groups, batch + 1)
                        for j in T.unroll(2):
                            for e in T.unroll(_X_BATCH):
                                if batch * _X_BATCH + e < eights:
                                    for t in T.unroll(group):
                                        sums = T.meta_var([acc[p % groups * group + t, batch * _X_BATCH + e, z] for z in range(4)])
                                        T.ptx[mma](*sums, fragment[p % buffers, t, 0, 2 * j], fragment[p % buffers, t, 1, 2 * j],
                                                   fragment[p % buffers, t, 0, 2 * j + 1], fragment[p % buffers, t, 1, 2 * j + 1],
                                                   x_part[batch * _X_BATCH + e, 2 * j], x_part[batch * _X_BATCH + e, 2 * j + 1], *sums)
                slot = T.if_then_else(slot == stages - 1, 0, slot + 1)
            if segment + 1 < segments:
                T.cuda.cta_sync()
                enter(segment + 1)
                copy_first(True)  # they arrive during the epilogue
                enter(segment)  # again, rather than keep all of it in registers

            if cuts:
                if k_end < blocks:
                    # A later block finishes the tile
                    for t in T.unroll(tiles_w):
                        for b in T.unroll(eights):
                            T.ptx["st.global.cg.v4.f32"](partials.ptr_to([block, t * eights + b, tx, 0]), *[acc[t, b, z] for z in range(4)])
                    T.ptx.fence.acq_rel.gpu()
                    T.cuda.warp_sync()
                    if lane == 0:
                        T.ptx["st.release.gpu.global.u32"](flags.ptr_to([block, warp]), T.uint32(1))
                else:
                    if k_begin > 0:
                        sharing_: T.int32 = plan[7]
                        units_: T.int32 = plan[5] * blocks
                        first: T.int32 = stream_k.first_block(tile, blocks, units_, sharing_)
                        for o in T.serial((block - first + 31) // 32):
                            polled: T.int32 = first + o * 32 + lane
                            if polled < block:
                                if stream_k.first_unit(polled + 1, units_, sharing_, _select) > stream_k.first_unit(polled, units_, sharing_, _select):
                                    flag[0] = T.uint32(0)
                                    while flag[0] == T.uint32(0):
                                        T.ptx["ld.acquire.gpu.global.u32"](flag[0], flags.ptr_to([polled, warp]))
                            T.cuda.warp_sync()
                        for o in T.serial(block - first):
                            added: T.int32 = first + o
                            if stream_k.first_unit(added + 1, units_, sharing_, _select) > stream_k.first_unit(added, units_, sharing_, _select):
                                for batch in T.unroll(-(-tiles_w * eights // _SUM_BATCH)):
                                    for j in T.unroll(_SUM_BATCH):
                                        if batch * _SUM_BATCH + j < tiles_w * eights:
                                            T.ptx["ld.global.cg.v4.f32"](*[other[j, z] for z in range(4)], partials.ptr_to([added, batch * _SUM_BATCH + j, tx, 0]))
                                    for j in T.unroll(_SUM_BATCH):
                                        if batch * _SUM_BATCH + j < tiles_w * eights:
                                            f = T.meta_var(batch * _SUM_BATCH + j)
                                            for z in T.unroll(4):
                                                acc[f // eights, f % eights, z] = acc[f // eights, f % eights, z] + other[j, z]
            if k_end == blocks:
                for t in T.unroll(tiles_w):
                    row: T.let = T.min(w_tile + t, n_tiles - 1) * layout.TILE_N + g
                    for h in T.unroll(2):
                        row_scale[t, h] = global_scale[row + h * 8]
                        if has_bias:
                            row_bias[t, h] = bias[T.min(row + h * 8, N - 1)]
                for four in T.unroll(-(-squares // 4)):
                    for m in T.unroll(4):
                        if four * 4 + m < squares:
                            square = T.meta_var(four * 4 + m)
                            b = T.meta_var(square // (tiles_w * halves))
                            t = T.meta_var(square % (tiles_w * halves) // halves)
                            h = T.meta_var(square % halves)
                            for e in T.unroll(2):
                                token: T.let = T.cast(token_base + b * 8 + q * 2 + e, "int64")
                                if gated:
                                    value[0, e] = silu(row_value(acc[t, b, e], row_scale[t, 0], row_bias[t, 0] if has_bias else None)) * row_value(
                                        acc[t, b, e + 2], row_scale[t, 1], row_bias[t, 1] if has_bias else None)
                                else:
                                    value[0, e] = row_value(acc[t, b, e + h * 2], row_scale[t, h], row_bias[t, h] if has_bias else None)
                                column: T.let = (w_tile + t) * columns + h * 8 + g
                                if has_residual:
                                    value[0, e] = value[0, e] + T.cast(residual[T.min(token, M - 1), T.min(column, out_N - 1)], "float32")
                                if not transposed:
                                    if token < M:
                                        if column < out_N:
                                            out[token, column] = T.cast(value[0, e], out_dtype)
                            if transposed:
                                T.ptx[_PACK[out_dtype]](packed[m], value[0, 1], value[0, 0])
                                T.ptx["movmatrix.sync.aligned.m8n8.trans.b16"](packed[m], packed[m])
                    if transposed:
                        T.evaluate(T.cuda.func_call("nvfp4_quad_transpose", packed[0], packed[1], packed[2], packed[3], source_code=_QUAD))
                        own: T.let = four * 4 + q
                        line: T.let = T.cast(token_base + own // (tiles_w * halves) * 8 + g, "int64")
                        start: T.let = w_tile * columns + own % (tiles_w * halves) * 8
                        if squares % 4 == 0 or own < squares:
                            if line < M:
                                if start < out_N:
                                    T.ptx["st.global.v4.u32"](out.ptr_to([line, start]), packed[0], packed[1], packed[2], packed[3])
            if segment + 1 < segments:
                enter(segment + 1)
    # fmt: on
    present = {"bias": has_bias, "residual": has_residual, "partials": cuts, "flags": cuts}
    params = [param for param in matmul.params if present.get(param.name, True)]
    function = PrimFunc(params, matmul.body, matmul.ret_type, matmul.attrs)
    return function.with_attr(*PDL) if pdl else function
