"""The wgmma GEMM kernel: C^T = W x^T, W decoded from FP4 into wgmma's register operand.

A block computes tiles of ``64 * warpgroups`` weight rows by ``tokens`` activation rows, and runs of
128-blocks of k of them as :mod:`nvfp4_tvm.schedules.stream_k` hands them out.

- Weights: each thread copies the 36 bytes that it will decode itself (:mod:`nvfp4_tvm.layout` gives a lane
  128 consecutive codes' words) by cp.async into a ring of its own slots, so that no barrier guards them and
  many 128-blocks are in flight. Only constants are read this way: it starts before the preceding launch has
  ended.
- Activations: one thread of an extra warpgroup brings a 128-block of the tile with one bulk copy
  (:mod:`nvfp4_tvm.schedules.activation_layout`) into a ring guarded by a pair of mbarriers a slot.
- A 128-block is eight wgmma in four groups. A group's codes are decoded while the previous group multiplies:
  its registers are free one ``wait_group`` later. ptxas keeps wgmma asynchronous only if it does not run out
  of registers, hence setmaxnreg.
- Sums of a tile that several blocks share: :mod:`nvfp4_tvm.schedules.gemm_hand_over_kernel`.
- Epilogue: :mod:`nvfp4_tvm.schedules.gemm_store_kernel`.
"""

from __future__ import annotations

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from nvfp4_tvm import layout
from nvfp4_tvm.schedules import stream_k
from nvfp4_tvm.schedules.activation_layout import BOX_WORDS, BOXES, PDL
from nvfp4_tvm.schedules.base import MatmulProblem, gemm_arguments
from nvfp4_tvm.schedules.gemm_hand_over_kernel import hand_over, select
from nvfp4_tvm.schedules.gemm_store_kernel import (
    DESCRIPTOR_HIGH,
    KEEP,
    PIECE_TOKENS,
    STAGING_SHAPE,
    epilogue_scripts,
    wgmma,
)
from nvfp4_tvm.schedules.gemm_wgmma_config import X_BLOCK_BYTES, WgmmaConfig
from nvfp4_tvm.schedules.intrin.fp4_decode import cuda_decoder, decode_name, scales_name

_BULK_COPY = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"


def arguments(problem: MatmulProblem) -> tuple[str, ...]:
    """Names of the kernel's arguments, in order."""
    return gemm_arguments(problem, "x_tiles", ("partials", "flags"))


def matmul_kernel(problem: MatmulProblem, config: WgmmaConfig, sms: int) -> PrimFunc:
    """Return the kernel, a function of `arguments`.

    Parameters
    ----------
    problem : MatmulProblem
        bfloat16 or float16 activations.
    config : WgmmaConfig
        The tile.
    sms : int
        Multiprocessors to launch for.
    """
    N, K, out_N = problem.N, problem.K, problem.out_N
    n_tiles, blocks = layout.tiles(N, K)
    tokens, warps, x_stages, w_stages = config.tokens, config.warps, config.x_stages, config.w_stages
    row_tiles = -(-n_tiles // warps)
    grid = config.grid(sms)
    overhead = config.overhead
    dtype, out_dtype = problem.x_dtype, problem.out_dtype
    mma = wgmma(tokens, dtype)
    # One source holds both functions; TVM emits a source a function
    source, decode, decode_scales = cuda_decoder(dtype), decode_name(dtype), scales_name(dtype)
    x_bytes = tokens * X_BLOCK_BYTES
    sums = tokens // 2  # accumulators of a thread
    give, take = hand_over(tokens)
    load_rows, store = epilogue_scripts(problem)

    # fmt: off
    @T.prim_func
    def matmul(tiles_ptr: T.handle, words: T.Buffer(layout.words_shape(N, K), "uint32"), scales: T.Buffer(layout.scales_shape(N, K), "uint32"),
               global_scale: T.Buffer(layout.global_scale_shape(N), "float32"), bias: T.Buffer((N,), dtype), residual_ptr: T.handle,
               partials: T.Buffer(config.partials_shape(sms), "float32"), flags: T.Buffer((grid, warps), "uint32"), out_ptr: T.handle):
        M = T.int64()
        out = T.match_buffer(out_ptr, (M, out_N), out_dtype, align=16)
        residual = T.match_buffer(residual_ptr, (M, out_N), out_dtype)
        x_tiles = T.match_buffer(tiles_ptr, ((M + (tokens - 1)) // tokens, blocks, BOXES, tokens, BOX_WORDS), "uint32", align=128)
        T.device_entry()
        T.attr({"tirx.launch_bounds_min_blocks_per_sm": config.residents})
        # Variables, not lets: TVM substitutes lets and then simplifies nested quotients for a minute
        block = T.cta_id([grid])
        tx = T.thread_id([config.threads])
        warp: T.let = tx // 32
        lane: T.let = tx % 32
        token_tiles: T.int32 = T.cast((M + (tokens - 1)) // tokens, "int32")
        tiles: T.int32 = token_tiles * row_tiles
        sharing: T.int32 = stream_k.sharing_blocks(tiles, grid, select)
        cut: T.int32 = stream_k.cut_tiles(tiles, sharing, blocks, grid, overhead, select)
        units: T.int32 = cut * blocks
        begin: T.int32 = stream_k.first_unit(block, units, sharing, select)
        end: T.int32 = stream_k.first_unit(block + 1, units, sharing, select)
        last_cut: T.int32 = T.max(end - 1, 0) // blocks
        runs: T.int32 = T.if_then_else(end > begin, last_cut - begin // blocks + 1, 0)
        segments: T.int32 = runs + stream_k.whole_tiles(tiles, cut, block, grid)

        pool = T.SMEMPool()
        x_ring = pool.alloc((x_stages, BOXES, tokens, 2 * BOX_WORDS), dtype, align=1024)
        w_ring = pool.alloc((w_stages, warps, 2, layout.LANES, layout.WORDS_PER_LANE), "uint32", align=128)
        s_ring = pool.alloc((w_stages, warps, layout.LANES), "uint32", align=128)
        staging = pool.alloc((warps, *STAGING_SHAPE), "uint16", align=128)
        full = pool.alloc((x_stages,), "uint64", align=8)
        empty = pool.alloc((x_stages,), "uint64", align=8)
        pool.commit()
        slot: T.int32
        phase: T.int32
        tile: T.int32
        k_begin: T.int32
        k_end: T.int32
        T.ptx.griddepcontrol.launch_dependents()
        if tx == 0:
            for i in T.unroll(x_stages):
                T.ptx.mbarrier.init.shared.b64(full.ptr_to([i]), T.uint32(1))
                T.ptx.mbarrier.init.shared.b64(empty.ptr_to([i]), T.uint32(warps))
        T.ptx.fence.proxy.async_.shared__cta()
        T.cuda.cta_sync()
        slot = 0
        phase = 0

        @T.inline
        def enter(segment):
            """The segment's tile and 128-blocks: cut tiles from the back, then whole ones."""
            tile = T.if_then_else(segment < runs, last_cut - segment, cut + (segment - runs) * grid + block)
            k_begin = T.if_then_else(segment < runs, T.max(begin - tile * blocks, 0), 0)
            k_end = T.if_then_else(segment < runs, T.min(end - tile * blocks, blocks), blocks)

        @T.inline
        def advance():
            slot = slot + 1
            if slot == x_stages:
                slot = 0
                phase = phase ^ 1

        if warp >= warps:
            T.ptx["setmaxnreg.dec.sync.aligned.u32"](config.producer_registers)
            if tx == warps * 32:
                produced: T.int32
                produced = 0
                T.ptx.griddepcontrol.wait()
                for segment in T.serial(segments):
                    enter(segment)
                    token_tile: T.int32 = tile % token_tiles
                    for kk in T.serial(k_end - k_begin):
                        if produced >= x_stages:
                            T.cuda.mbarrier_wait(empty.ptr_to([slot]), phase ^ 1)
                        T.ptx.mbarrier.arrive.expect_tx.shared.b64(full.ptr_to([slot]), T.uint32(x_bytes))
                        T.ptx[_BULK_COPY](x_ring.ptr_to([slot, 0, 0, 0]), x_tiles.ptr_to([T.cast(token_tile, "int64"), k_begin + kk, 0, 0, 0]),
                                          T.uint32(x_bytes), full.ptr_to([slot]))
                        produced = produced + 1
                        advance()
        else:
            T.ptx["setmaxnreg.inc.sync.aligned.u32"](config.consumer_registers)
            word = T.alloc_local((2, 4), "uint32")
            scale_bytes = T.alloc_local((1,), "uint32")
            scale = T.alloc_local((2, 2), "uint32")  # [group][row g or g + 8]
            fragment = T.alloc_local((4, 2, 4), "uint32")
            acc = T.alloc_local((sums,), "float32")
            row_scale = T.alloc_local((2,), "float32")
            row_bias = T.alloc_local((2,), dtype)
            w_slot: T.int32
            w_tile: T.int32
            descriptor: T.uint32
            x_address: T.uint32 = T.cuda.cvta_generic_to_shared(x_ring.ptr_to([0, 0, 0, 0])) // T.uint32(16)

            @T.inline
            def copy_weight(into, k):
                for h in T.unroll(2):
                    T.ptx["cp.async.cg.shared.global.L2::128B"](w_ring.ptr_to([into, warp, h, lane, 0]), words.ptr_to([w_tile, k, h, lane, 0]), 16)
                T.ptx["cp.async.ca.shared.global"](s_ring.ptr_to([into, warp, lane]), scales.ptr_to([w_tile, k, lane]), 4)

            @T.inline
            def read_weight():
                T.ptx["cp.async.wait_group"](w_stages - 1)
                for h in T.unroll(2):
                    T.ptx["ld.shared.v4.u32"](word[h, 0], word[h, 1], word[h, 2], word[h, 3], w_ring.ptr_to([w_slot, warp, h, lane, 0]))
                T.ptx["ld.shared.u32"](scale_bytes[0], s_ring.ptr_to([w_slot, warp, lane]))

            @T.inline
            def start(segment):
                """Enter a segment and copy its first 128-blocks; rows of tiles beyond N are read from the last one."""
                enter(segment)
                w_tile = T.min(tile // token_tiles * warps + warp, n_tiles - 1)
                for p in T.unroll(w_stages):
                    if k_begin + p < k_end:
                        copy_weight(p, k_begin + p)
                    T.ptx["cp.async.commit_group"]()

            if segments > 0:
                start(0)
            for segment in T.serial(segments):
                this: T.int32 = tile
                row_tile: T.int32 = tile // token_tiles
                token_tile: T.int32 = tile - row_tile * token_tiles
                k_first: T.int32 = k_begin
                k_stop: T.int32 = k_end
                w_slot = 0
                for i in T.unroll(sums):
                    acc[i] = T.float32(0)
                read_weight()
                T.evaluate(T.cuda.func_call(decode_scales, scale[0, 0], scale[0, 1], scale[1, 0], scale[1, 1], scale_bytes[0], source_code=source))
                for kk in T.serial(k_stop - k_first):
                    if k_first + kk + w_stages < k_stop:
                        copy_weight(w_slot, k_first + kk + w_stages)
                    T.ptx["cp.async.commit_group"]()
                    w_slot = T.if_then_else(w_slot == w_stages - 1, 0, w_slot + 1)
                    for i in T.unroll(4):
                        for h in T.unroll(2):
                            T.evaluate(T.cuda.func_call(decode, fragment[i, h, 0], fragment[i, h, 1], fragment[i, h, 2], fragment[i, h, 3],
                                                        word[h, i], scale[i // 2, h], source_code=""))
                        if i == 0:
                            T.cuda.mbarrier_wait(full.ptr_to([slot]), phase)
                            descriptor = x_address + T.cast(slot * (x_bytes // 16), "uint32")
                        if i == 3:
                            read_weight()  # of the next 128-block; after the last one it is not used
                        T.ptx.wgmma.fence.sync.aligned()
                        for j in T.unroll(2):
                            T.ptx[mma](*[acc[z] for z in range(sums)],
                                       fragment[i, 0, 2 * j], fragment[i, 1, 2 * j], fragment[i, 0, 2 * j + 1], fragment[i, 1, 2 * j + 1],
                                       T.uint64(DESCRIPTOR_HIGH) | T.cast(descriptor + T.uint32(i // 2 * (tokens * 8) + (i % 2 * 2 + j) * 2), "uint64"),
                                       T.bool(True), 1, 1, 0)
                        T.ptx.wgmma.commit_group.sync.aligned()
                        T.ptx.wgmma.wait_group.sync.aligned(1)
                        if i == 0:
                            # The last group of the previous 128-block is done
                            if kk > 0:
                                if lane == 0:
                                    T.ptx.mbarrier.arrive.shared.b64(empty.ptr_to([T.if_then_else(slot == 0, x_stages - 1, slot - 1)]))
                    T.evaluate(T.cuda.func_call(decode_scales, scale[0, 0], scale[0, 1], scale[1, 0], scale[1, 1], scale_bytes[0], source_code=source))
                    advance()
                T.ptx.wgmma.wait_group.sync.aligned(0)
                if lane == 0:
                    T.ptx.mbarrier.arrive.shared.b64(empty.ptr_to([T.if_then_else(slot == 0, x_stages - 1, slot - 1)]))
                for i in T.unroll(sums):
                    T.evaluate(T.cuda.func_call("nvfp4_keep", acc[i], source_code=KEEP))
                if segment + 1 < segments:
                    start(segment + 1)  # its weights arrive during the epilogue

                if k_stop < blocks:
                    # A later block finishes the tile
                    give(acc, partials, flags, block, tx)
                else:
                    if k_first > 0:
                        first: T.int32 = stream_k.first_block(this, blocks, units, sharing)
                        take(acc, partials, flags, block, first, units, sharing, tx)
                    load_rows(row_tile * warps + warp, lane, global_scale, bias, row_scale, row_bias)
                    for piece in T.unroll(tokens // PIECE_TOKENS):
                        store(acc, piece * (PIECE_TOKENS // 2), row_tile * warps + warp, token_tile * tokens + piece * PIECE_TOKENS, M, warp, lane,
                              row_scale, row_bias, residual, out, staging)
    # fmt: on
    taken = {*arguments(problem)}
    params = [param for param in matmul.params if param.name in taken]
    return PrimFunc(params, matmul.body, matmul.ret_type, matmul.attrs).with_attr(*PDL)
