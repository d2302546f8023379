"""The wgmma GEMM kernel for many rows: C^T = W x^T, W decoded from FP4 into shared memory.

A block computes tiles of 128 weight rows by ``tokens`` activation rows, and runs of 128-blocks of k of them as
:mod:`nvfp4_tvm.schedules.stream_k` hands them out. Two warpgroups multiply, 64 weight rows each, with both operands of
wgmma in shared memory; one or two more bring them there:

- Activations: a tensor map of ``x`` itself, which the host makes at every call (``cuTensorMapEncodeTiled``); two threads
  copy boxes of 64 k by the tile's tokens into a ring, in K-major rows with the 128-byte swizzle. Rows beyond M and
  columns beyond K arrive as zeros.
- Weights: each lane loads words and scales of a 128-block while it decodes the block before. A word becomes eight
  consecutive k, one 16-byte chunk of a K-major row of W (chunk c of row r stands at chunk ``c ^ (r % 8)``), so that no
  order but the natural one of k is needed anywhere. Only constants are read this way: it starts before the preceding
  launch has ended.
- mbarriers, a pair a slot: the activations' are for all, the weights' for each multiplying warpgroup and those that
  decode its rows. Stores of decoded weights are made visible to wgmma (async proxy) before a warp arrives.
- A box is four wgmma in one group; a box's slot is free when the next group has been issued and it is the only one left.
- Sums that blocks share: :mod:`.gemm_hand_over_kernel`; what is done to them: :mod:`.gemm_store_kernel`. 16-bit outputs
  are transposed by stmatrix and leave through a tensor map of ``out``, which clips at M and N, while the next tile
  begins; others, and rows of ``out`` that are not 16-byte aligned, are stored one by one.

Per 128-block of a tile of 256 tokens, 160 KiB are read from shared memory by wgmma, 64 KiB are written by copies and 32 KiB
by the decoder: the 128 bytes a clock of shared memory are what bounds it, as they bound the same tile in bfloat16.
"""

from __future__ import annotations

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from nvfp4_tvm import layout
from nvfp4_tvm.schedules import stream_k
from nvfp4_tvm.schedules.activation_layout import PDL
from nvfp4_tvm.schedules.base import MatmulProblem, gemm_arguments
from nvfp4_tvm.schedules.gemm_hand_over_kernel import hand_over, select
from nvfp4_tvm.schedules.gemm_store_kernel import (
    DESCRIPTOR_HIGH,
    KEEP,
    PIECE_TOKENS,
    output_columns,
    packs_output,
    row_epilogue,
    wgmma,
)
from nvfp4_tvm.schedules.gemm_wgmma_config import WARPGROUP_WARPS
from nvfp4_tvm.schedules.gemm_wgmma_ss_config import (
    BOX_BYTES,
    BOX_K,
    BOXES,
    REGISTERS,
    ROWS,
    STORE_STAGES,
    STORE_TOKENS,
    WARPGROUPS,
    WARPS,
    SharedWgmmaConfig,
)
from nvfp4_tvm.schedules.intrin.fp4_decode import cuda_decoder, decode_name, scales_name

_LOAD_WORDS = "ld.global.nc.L1::no_allocate.L2::128B.v4.u32"
_LOAD_SCALES = "ld.global.nc.L1::no_allocate.L2::128B.u32"
_COPY_BOX = "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
_STORE_BOX = "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group"
#: Enumerators of CUtensorMapSwizzle and CUtensorMapL2promotion (CUDA Driver API).
_SWIZZLE_64B, _SWIZZLE_128B, _L2_NONE, _L2_256B = 2, 3, 0, 3
#: 128-blocks of weights that a decoding thread holds in registers: one decoded, one arriving.
_HELD = 2


def arguments(problem: MatmulProblem) -> tuple[str, ...]:
    """Names of the kernel's arguments, in order."""
    return gemm_arguments(problem, scratch=("partials", "flags"))


def matmul_kernel(problem: MatmulProblem, config: SharedWgmmaConfig, sms: int) -> PrimFunc:
    """Return the kernel, a function of `arguments`.

    Parameters
    ----------
    problem : MatmulProblem
        bfloat16 or float16 activations.
    config : SharedWgmmaConfig
        The tile.
    sms : int
        Multiprocessors to launch for.
    """
    N, K, out_N = problem.N, problem.K, problem.out_N
    n_tiles, blocks = layout.tiles(N, K)
    tokens, warps, x_stages, w_stages = config.tokens, WARPS, config.x_stages, config.w_stages
    row_tiles = -(-n_tiles // warps)
    grid = config.grid(sms)
    overhead = config.overhead
    producers = config.decoders * WARPGROUP_WARPS
    own_tiles = warps // producers  # 16-row tiles of a decoding warp
    producer_registers, consumer_registers = REGISTERS[config.decoders]
    dtype, out_dtype = problem.x_dtype, problem.out_dtype
    mma = wgmma(tokens, dtype)
    # One source holds both functions; TVM emits a source a function
    source, decode, decode_scales = cuda_decoder(dtype), decode_name(dtype), scales_name(dtype)
    x_bytes, w_bytes = tokens * BOX_BYTES, ROWS * BOX_BYTES
    gated = problem.activation == "silu_mul"
    columns = output_columns(problem)
    bulk = packs_output(problem)
    store_columns = WARPGROUP_WARPS * columns
    store_swizzle = _SWIZZLE_64B if gated else _SWIZZLE_128B
    sums = tokens // 2  # accumulators of a thread
    give, take = hand_over(tokens)
    load_rows, finish = row_epilogue(problem)

    def first_row(token_tile, M):
        # Rows that TMA fills with zeros are slow (measured: 2.4 times the time of a tile with 9 of 256 rows): the last
        # tile begins earlier, at a multiple of `PIECE_TOKENS` rows, and stores only the rows that no other tile has
        padded = (T.cast(M, "int32") + (PIECE_TOKENS - 1)) // PIECE_TOKENS * PIECE_TOKENS
        return T.max(T.min(token_tile * tokens, padded - tokens), 0)

    # fmt: off
    @T.prim_func
    def matmul(x_ptr: T.handle, words: T.Buffer(layout.words_shape(N, K), "uint32"), scales: T.Buffer(layout.scales_shape(N, K), "uint32"),
               global_scale: T.Buffer(layout.global_scale_shape(N), "float32"), bias: T.Buffer((N,), dtype), residual_ptr: T.handle,
               partials: T.Buffer(config.partials_shape(sms), "float32"), flags: T.Buffer((grid, warps), "uint32"), out_ptr: T.handle):
        M = T.int64()
        out = T.match_buffer(out_ptr, (M, out_N), out_dtype, align=16)
        residual = T.match_buffer(residual_ptr, (M, out_N), out_dtype)
        x = T.match_buffer(x_ptr, (M, K), dtype, align=16)
        x_map: T.let[T.handle("tensormap")] = T.tvm_stack_alloca("tensormap", 1)
        T.call_packed("runtime.cuTensorMapEncodeTiled", x_map, dtype, 2, x.data, K, M, K * 2, BOX_K, tokens, 1, 1, 0, _SWIZZLE_128B, _L2_256B, 0)
        out_map: T.let[T.handle("tensormap")] = T.tvm_stack_alloca("tensormap", 1)
        if bulk:
            T.call_packed("runtime.cuTensorMapEncodeTiled", out_map, out_dtype, 2, out.data, out_N, M, out_N * 2, store_columns, PIECE_TOKENS, 1, 1, 0, store_swizzle, _L2_NONE, 0)
        T.device_entry()
        T.attr({"tirx.launch_bounds_min_blocks_per_sm": 1})
        # Variables, not lets: TVM substitutes lets and then simplifies nested quotients for a minute
        block = T.cta_id([grid])
        tx = T.thread_id([config.threads])
        warp: T.let = tx // 32
        lane: T.let = tx % 32
        g: T.let = lane // 4
        q: T.let = lane % 4
        token_tiles: T.int32
        sharing: T.int32
        cut: T.int32
        units: T.int32
        begin: T.int32
        end: T.int32
        last_cut: T.int32
        runs: T.int32
        segments: T.int32

        pool = T.SMEMPool()
        x_ring = pool.alloc((x_stages, tokens, BOX_K), dtype, align=1024)
        w_ring = pool.alloc((w_stages, BOXES, ROWS, BOX_K), dtype, align=1024)
        store_ring = pool.alloc((WARPGROUPS, STORE_STAGES, STORE_TOKENS, store_columns), "uint16", align=1024)
        full_x = pool.alloc((x_stages,), "uint64", align=8)
        empty_x = pool.alloc((x_stages,), "uint64", align=8)
        full_w = pool.alloc((w_stages, WARPGROUPS), "uint64", align=8)
        empty_w = pool.alloc((w_stages, WARPGROUPS), "uint64", align=8)
        pool.commit()
        x_slot: T.int32
        x_phase: T.int32
        w_slot: T.int32
        w_phase: T.int32
        tile: T.int32
        k_begin: T.int32
        k_end: T.int32
        T.ptx.griddepcontrol.launch_dependents()
        if tx == 0:
            for i in T.unroll(x_stages):
                T.ptx.mbarrier.init.shared.b64(full_x.ptr_to([i]), T.uint32(1))
                T.ptx.mbarrier.init.shared.b64(empty_x.ptr_to([i]), T.uint32(warps))
            for i in T.unroll(w_stages):
                for w in T.unroll(WARPGROUPS):
                    T.ptx.mbarrier.init.shared.b64(full_w.ptr_to([i, w]), T.uint32(producers // WARPGROUPS))
                    T.ptx.mbarrier.init.shared.b64(empty_w.ptr_to([i, w]), T.uint32(WARPGROUP_WARPS))
        T.ptx.fence.proxy.async_.shared__cta()
        T.cuda.cta_sync()
        x_slot = 0
        x_phase = 0
        w_slot = 0
        w_phase = 0

        @T.inline
        def plan():
            """The block's share of the work, for each role anew: it would be spilled across the wider of them."""
            token_tiles = T.cast((M + (tokens - 1)) // tokens, "int32")
            tiles: T.int32 = token_tiles * row_tiles
            sharing = stream_k.sharing_blocks(tiles, grid, select)
            cut = stream_k.cut_tiles(tiles, sharing, blocks, grid, overhead, select)
            units = cut * blocks
            begin = stream_k.first_unit(block, units, sharing, select)
            end = stream_k.first_unit(block + 1, units, sharing, select)
            last_cut = T.max(end - 1, 0) // blocks
            runs = T.if_then_else(end > begin, last_cut - begin // blocks + 1, 0)
            segments = runs + stream_k.whole_tiles(tiles, cut, block, grid)

        @T.inline
        def enter(segment):
            """The segment's tile and 128-blocks: cut tiles from the back, then whole ones."""
            tile = T.if_then_else(segment < runs, last_cut - segment, cut + (segment - runs) * grid + block)
            k_begin = T.if_then_else(segment < runs, T.max(begin - tile * blocks, 0), 0)
            k_end = T.if_then_else(segment < runs, T.min(end - tile * blocks, blocks), blocks)

        @T.inline
        def advance_x():
            x_slot = x_slot + 1
            if x_slot == x_stages:
                x_slot = 0
                x_phase = x_phase ^ 1

        @T.inline
        def advance_w():
            w_slot = w_slot + 1
            if w_slot == w_stages:
                w_slot = 0
                w_phase = w_phase ^ 1

        if warp >= warps:
            T.ptx["setmaxnreg.dec.sync.aligned.u32"](producer_registers)
            plan()
            word = T.alloc_local((_HELD, own_tiles, 2, 4), "uint32")
            scale_bytes = T.alloc_local((_HELD, own_tiles), "uint32")
            scale = T.alloc_local((own_tiles, 2, 2), "uint32")  # [tile][group][row g or g + 8]
            decoded = T.alloc_local((4,), "uint32")
            producer: T.let = warp - warps
            reader: T.let = producer // (producers // WARPGROUPS)  # the warpgroup that multiplies its rows
            # Eight lanes store to one box, 16 bytes of a row each: rows g of a half, k-lanes q of a pair. They hit all banks
            row: T.let = lane // 2 % 8
            quad: T.let = lane // 16 * 2 + lane % 2
            own_lane: T.let = row * 4 + quad
            to = T.alloc_local((4,), "uint32")
            first_tile: T.int32

            @T.inline
            def load(into, k):
                for t in T.unroll(own_tiles):
                    w_tile: T.int32 = T.min(first_tile + t, n_tiles - 1)
                    for h in T.unroll(2):
                        T.ptx[_LOAD_WORDS](word[into, t, h, 0], word[into, t, h, 1], word[into, t, h, 2], word[into, t, h, 3], words.ptr_to([w_tile, k, h, own_lane, 0]))
                    T.ptx[_LOAD_SCALES](scale_bytes[into, t], scales.ptr_to([w_tile, k, own_lane]))

            @T.inline
            def copy_box(j, kk, origin):
                if producer == j:
                    T.cuda.mbarrier_wait(empty_x.ptr_to([x_slot]), x_phase ^ 1)
                    if lane == 0:
                        T.ptx.mbarrier.arrive.expect_tx.shared.b64(full_x.ptr_to([x_slot]), T.uint32(x_bytes))
                        T.ptx[_COPY_BOX](x_ring.ptr_to([x_slot, 0, 0]), T.address_of(x_map),
                                         (k_begin + kk) * layout.TILE_K + j * BOX_K, origin, full_x.ptr_to([x_slot]))
                    T.cuda.warp_sync()
                advance_x()

            for i in T.unroll(4):
                to[i] = T.cuda.cvta_generic_to_shared(w_ring.ptr_to([0, quad // 2, producer * (own_tiles * 16) + row, ((quad % 2 * 4 + i) ^ row) * 8]))
            for segment in T.serial(segments):
                enter(segment)
                row_tile: T.int32 = tile // token_tiles
                origin: T.int32 = first_row(tile - row_tile * token_tiles, M)
                length: T.int32 = k_end - k_begin
                first_tile = row_tile * warps + producer * own_tiles
                load(0, k_begin)
                if segment == 0 and producer < BOXES:
                    T.ptx.griddepcontrol.wait()
                for round in T.serial((length + (_HELD - 1)) // _HELD):
                    for u in T.unroll(_HELD):
                        kk: T.int32 = round * _HELD + u
                        if kk < length:
                            # Before the branches that wait: the next words must not be waited for here
                            for t in T.unroll(own_tiles):
                                T.evaluate(T.cuda.func_call(decode_scales, scale[t, 0, 0], scale[t, 0, 1], scale[t, 1, 0], scale[t, 1, 1], scale_bytes[u, t], source_code=source))
                            copy_box(0, kk, origin)
                            T.cuda.mbarrier_wait(empty_w.ptr_to([w_slot, reader]), w_phase ^ 1)
                            # Between two branches ptxas leaves them where they are, early
                            load(_HELD - 1 - u, T.min(k_begin + kk + 1, k_end - 1))
                            copy_box(1, kk, origin)
                            for t in T.unroll(own_tiles):
                                for i in T.unroll(4):
                                    for h in T.unroll(2):
                                        T.evaluate(T.cuda.func_call(decode, decoded[0], decoded[1], decoded[2], decoded[3], word[u, t, h, i], scale[t, i // 2, h], source_code=""))
                                        T.ptx["st.shared.v4.u32"](to[i] + T.cast(w_slot * (BOXES * w_bytes), "uint32") + T.uint32((t * 16 + h * 8) * BOX_BYTES),
                                                                  decoded[0], decoded[1], decoded[2], decoded[3])
                            T.ptx.fence.proxy.async_.shared__cta()
                            T.cuda.warp_sync()
                            if lane == 0:
                                T.ptx.mbarrier.arrive.shared.b64(full_w.ptr_to([w_slot, reader]))
                            advance_w()
        else:
            T.ptx["setmaxnreg.inc.sync.aligned.u32"](consumer_registers)
            plan()
            acc = T.alloc_local((sums,), "float32")
            row_scale = T.alloc_local((2,), "float32")
            row_bias = T.alloc_local((2,), dtype)
            packed = T.alloc_local((4,), "uint32")
            x_address: T.uint32 = T.cuda.cvta_generic_to_shared(x_ring.ptr_to([0, 0, 0])) // T.uint32(16)
            w_address: T.uint32 = T.cuda.cvta_generic_to_shared(w_ring.ptr_to([0, 0, 0, 0])) // T.uint32(16) + T.cast(warp // 4 * (64 * BOX_BYTES // 16), "uint32")
            x_at: T.uint32
            w_at: T.uint32

            @T.inline
            def release_x(slot):
                if lane == 0:
                    T.ptx.mbarrier.arrive.shared.b64(empty_x.ptr_to([slot]))

            @T.inline
            def release_w(slot):
                if lane == 0:
                    T.ptx.mbarrier.arrive.shared.b64(empty_w.ptr_to([slot, warp // 4]))

            for segment in T.serial(segments):
                enter(segment)
                this: T.int32 = tile
                row_tile: T.int32 = tile // token_tiles
                token_tile: T.int32 = tile - row_tile * token_tiles
                origin: T.int32 = first_row(token_tile, M)
                others: T.int32 = token_tile * tokens - origin
                k_first: T.int32 = k_begin
                k_stop: T.int32 = k_end
                for i in T.unroll(sums):
                    acc[i] = T.float32(0)
                for kk in T.serial(k_stop - k_first):
                    T.cuda.mbarrier_wait(full_w.ptr_to([w_slot, warp // 4]), w_phase)
                    for j in T.unroll(BOXES):
                        T.cuda.mbarrier_wait(full_x.ptr_to([x_slot]), x_phase)
                        x_at = x_address + T.cast(x_slot * (x_bytes // 16), "uint32")
                        w_at = w_address + T.cast((w_slot * BOXES + j) * (w_bytes // 16), "uint32")
                        T.ptx.wgmma.fence.sync.aligned()
                        for i in T.unroll(4):
                            T.ptx[mma](*[acc[z] for z in range(sums)],
                                       T.uint64(DESCRIPTOR_HIGH) | T.cast(w_at + T.uint32(i * 2), "uint64"),
                                       T.uint64(DESCRIPTOR_HIGH) | T.cast(x_at + T.uint32(i * 2), "uint64"),
                                       T.bool(True), 1, 1, 0, 0)
                        T.ptx.wgmma.commit_group.sync.aligned()
                        T.ptx.wgmma.wait_group.sync.aligned(1)
                        # The previous box is done
                        if j == 0:
                            if kk > 0:
                                release_x(T.if_then_else(x_slot == 0, x_stages - 1, x_slot - 1))
                                release_w(T.if_then_else(w_slot == 0, w_stages - 1, w_slot - 1))
                        else:
                            release_x(T.if_then_else(x_slot == 0, x_stages - 1, x_slot - 1))
                        advance_x()
                    advance_w()
                T.ptx.wgmma.wait_group.sync.aligned(0)
                release_x(T.if_then_else(x_slot == 0, x_stages - 1, x_slot - 1))
                release_w(T.if_then_else(w_slot == 0, w_stages - 1, w_slot - 1))
                for i in T.unroll(sums):
                    T.evaluate(T.cuda.func_call("nvfp4_keep", acc[i], source_code=KEEP))

                if k_stop < blocks:
                    # A later block finishes the tile
                    give(acc, partials, flags, block, tx)
                else:
                    if k_first > 0:
                        first: T.int32 = stream_k.first_block(this, blocks, units, sharing)
                        take(acc, partials, flags, block, first, units, sharing, tx)
                    tile_row: T.int32 = row_tile * warps + warp
                    load_rows(tile_row, lane, global_scale, bias, row_scale, row_bias)
                    column: T.int32 = tile_row * columns
                    own_column: T.int32 = column + g
                    own_token: T.int32 = origin + q * 2
                    rows: T.int32 = T.cast(M, "int32")
                    for pair in T.unroll(tokens // PIECE_TOKENS):
                        stage = T.meta_var(pair * PIECE_TOKENS // STORE_TOKENS % STORE_STAGES)
                        at = T.meta_var(pair * PIECE_TOKENS % STORE_TOKENS)
                        if bulk:
                            if at == 0:
                                if tx % 128 == 0:
                                    # This stage's last store; the tile before may have ended with this stage
                                    T.ptx["cp.async.bulk.wait_group.read"](0 if pair == 0 else STORE_STAGES - 1)
                                T.cuda.warpgroup_sync(1 + warp // 4)
                            finish(acc, pair * (PIECE_TOKENS // 2), row_scale, row_bias, residual, out, own_token + pair * PIECE_TOKENS, own_column, rows, packed)
                            if gated:
                                T.ptx["stmatrix.sync.aligned.m8n8.x2.trans.shared.b16"](
                                    store_ring.ptr_to([warp // 4, stage, at + lane % 16, ((warp % 4) ^ (lane % 8 // 2)) * 8]), packed[0], packed[1])
                            else:
                                T.ptx["stmatrix.sync.aligned.m8n8.x4.trans.shared.b16"](
                                    store_ring.ptr_to([warp // 4, stage, at + lane // 16 * 8 + lane % 8, ((warp % 4 * 2 + lane // 8 % 2) ^ (lane % 8)) * 8]),
                                    packed[0], packed[1], packed[2], packed[3])
                            if at + PIECE_TOKENS == STORE_TOKENS or (pair + 1) * PIECE_TOKENS == tokens:
                                T.ptx.fence.proxy.async_.shared__cta()
                                T.cuda.warpgroup_sync(1 + warp // 4)
                                if tx % 128 == 0:
                                    for piece in T.unroll(STORE_TOKENS // PIECE_TOKENS):
                                        if piece * PIECE_TOKENS <= at:
                                            if pair * PIECE_TOKENS - at + piece * PIECE_TOKENS >= others:
                                                T.ptx[_STORE_BOX](T.address_of(out_map), column - warp % 4 * columns, origin + (pair * PIECE_TOKENS - at + piece * PIECE_TOKENS),
                                                                  store_ring.ptr_to([warp // 4, stage, piece * PIECE_TOKENS, 0]))
                                    T.ptx["cp.async.bulk.commit_group"]()
                        else:
                            if pair * PIECE_TOKENS >= others:
                                finish(acc, pair * (PIECE_TOKENS // 2), row_scale, row_bias, residual, out, own_token + pair * PIECE_TOKENS, own_column, rows, packed)
            if bulk:
                # Shared memory must not go before it was read
                if tx % 128 == 0:
                    T.ptx["cp.async.bulk.wait_group.read"](0)
    # fmt: on
    taken = {*arguments(problem)}
    params = [param for param in matmul.params if param.name.removesuffix("_ptr") in taken]
    return PrimFunc(params, matmul.body, matmul.ret_type, matmul.attrs).with_attr(*PDL)
