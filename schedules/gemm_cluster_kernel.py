"""The cluster GEMM kernel: C^T = W x^T in one launch, the k of a tile shared by the blocks of a cluster.

For small products what counts is the chain of launches that depend on each other, and for few activation rows
how often activations are read from the L2. Hence one launch, no global workspace, and tiles of many weight rows.

- Weights: each thread copies the 36 bytes a 128-block and tile that it will decode itself by cp.async into a ring
  of its own slots (as in :mod:`nvfp4_tvm.schedules.gemm_wgmma_kernel`), before the preceding launch has ended.
- Activations: wgmma wants pairs that lie 64 bytes apart in x beside each other
  (:mod:`nvfp4_tvm.schedules.activation_layout`). The producer warpgroup copies row-major x pair by pair, by cp.async
  of 4 bytes straight to where they belong; many 128-blocks are on their way, and no registers hold them. A warp
  reads whole 32-byte sectors, lane ``16a + 4p + q`` pair p of the piece at k = 32q + 8a (+ 16 for the second box),
  and writes all 32 banks.
- A warp decodes ``warp_tiles`` tiles of 16 weight rows against the same activations in shared memory. While a group
  of two wgmma runs, the next group's codes are decoded.
- Sums: every block leaves its accumulators in its shared memory; after a barrier of the cluster its warps add up
  their share of the tile, 16 rows by 16 tokens at a time, over the cluster's blocks in ascending order: the
  result does not depend on timing.
"""

from __future__ import annotations

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from nvfp4_tvm import layout
from nvfp4_tvm.schedules.activation_layout import BOX_WORDS, BOXES, PDL
from nvfp4_tvm.schedules.base import MatmulProblem, gemm_arguments
from nvfp4_tvm.schedules.gemm_cluster_config import PRODUCER_WARPS, ClusterConfig
from nvfp4_tvm.schedules.gemm_store_kernel import (
    DESCRIPTOR_HIGH,
    KEEP,
    PIECE_TOKENS,
    STAGING_SHAPE,
    epilogue_scripts,
    wgmma,
)
from nvfp4_tvm.schedules.gemm_wgmma_config import X_BLOCK_BYTES
from nvfp4_tvm.schedules.intrin.fp4_decode import cuda_decoder, decode_name, scales_name

#: Words of a lane that are decoded at a time: two wgmma each, and one wait.
_GROUP = 2


def arguments(problem: MatmulProblem) -> tuple[str, ...]:
    """Names of the kernel's arguments, in order."""
    return gemm_arguments(problem)


def matmul_kernel(problem: MatmulProblem, config: ClusterConfig) -> PrimFunc:
    """Return the kernel, a function of `arguments`.

    Parameters
    ----------
    problem : MatmulProblem
        bfloat16 or float16 activations.
    config : ClusterConfig
        The tile.
    """
    N, K, out_N = problem.N, problem.K, problem.out_N
    n_tiles, blocks = layout.tiles(N, K)
    tokens, warps, warp_tiles, cluster = config.tokens, config.warps, config.warp_tiles, config.cluster
    x_stages, w_stages = config.x_stages, config.w_stages
    row_tiles = -(-n_tiles // config.tiles)
    dtype, out_dtype = problem.x_dtype, problem.out_dtype
    mma = wgmma(tokens, dtype)
    load_rows, store = epilogue_scripts(problem)
    # One source holds both functions; TVM emits a source a function
    source, decode, decode_scales = cuda_decoder(dtype), decode_name(dtype), scales_name(dtype)
    x_bytes = tokens * X_BLOCK_BYTES
    whole_x = K % layout.TILE_K == 0
    sums = tokens // 2  # accumulators of a thread, of one tile
    chunks = tokens // 8
    pieces = tokens // PIECE_TOKENS * config.tiles  # of 16 rows by 16 tokens, that a warp adds up

    # fmt: off
    @T.prim_func
    def matmul(x_ptr: T.handle, words: T.Buffer(layout.words_shape(N, K), "uint32"), scales: T.Buffer(layout.scales_shape(N, K), "uint32"),
               global_scale: T.Buffer(layout.global_scale_shape(N), "float32"), bias: T.Buffer((N,), dtype), residual_ptr: T.handle, out_ptr: T.handle):
        M = T.int64()
        x = T.match_buffer(x_ptr, (M, K), dtype, align=16)
        out = T.match_buffer(out_ptr, (M, out_N), out_dtype, align=16)
        residual = T.match_buffer(residual_ptr, (M, out_N), out_dtype)
        T.device_entry()
        T.attr({"tirx.launch_bounds_min_blocks_per_sm": config.residents})
        if cluster > 1:
            in_cluster = T.cta_id_in_cluster([cluster])
        block = T.cta_id([T.cast((M + (tokens - 1)) // tokens, "int32") * (row_tiles * cluster)])
        tx = T.thread_id([config.threads])
        warp: T.let = tx // 32
        lane: T.let = tx % 32
        # Variables, not lets: TVM substitutes lets and then simplifies nested quotients for a minute
        rank: T.int32 = block % cluster
        tile: T.int32 = block // cluster
        token_tiles: T.int32 = T.cast((M + (tokens - 1)) // tokens, "int32")
        row_tile: T.int32 = tile // token_tiles
        first_token: T.int32 = (tile - row_tile * token_tiles) * tokens
        rows: T.int32 = T.cast(M, "int32")
        k_begin: T.int32 = rank * blocks // cluster
        count: T.int32 = (rank + 1) * blocks // cluster - k_begin

        pool = T.SMEMPool()
        x_ring = pool.alloc((x_stages, BOXES, tokens, 2 * BOX_WORDS), dtype, align=1024)
        w_ring = pool.alloc((w_stages, config.tiles, 2, layout.LANES, layout.WORDS_PER_LANE), "uint32", align=128)
        s_ring = pool.alloc((w_stages, config.tiles, layout.LANES), "uint32", align=128)
        pool.move_base_to(0)
        partial = pool.alloc((config.tiles, chunks, layout.LANES, 4), "float32", align=128)
        pool.move_base_to(config.ring_bytes)
        staging = pool.alloc((warps, *STAGING_SHAPE), "uint16", align=128)
        full = pool.alloc((x_stages,), "uint64", align=8)
        empty = pool.alloc((x_stages,), "uint64", align=8)
        pool.commit()
        slot: T.int32
        phase: T.int32
        slot = 0
        phase = 0
        if tx == 0:
            for i in T.unroll(x_stages):
                T.ptx.mbarrier.init.shared.b64(full.ptr_to([i]), T.uint32(PRODUCER_WARPS))
                T.ptx.mbarrier.init.shared.b64(empty.ptr_to([i]), T.uint32(warps))
        T.cuda.cta_sync()

        @T.inline
        def advance():
            slot = slot + 1
            if slot == x_stages:
                slot = 0
                phase = phase ^ 1

        if warp >= warps:
            T.ptx["setmaxnreg.dec.sync.aligned.u32"](config.producer_registers)
            at = T.alloc_local((2,), "uint32")
            row: T.int32 = warp - warps  # of this warp's, the first; every fourth one follows
            in_row: T.int32 = rows - first_token - row
            word_k: T.int32 = k_begin * layout.TILE_K + lane % 4 * 32 + lane // 16 * 8 + lane // 4 % 4 * 2
            source_at: T.int64
            ready: T.int32
            source_at = T.cast(first_token + row, "int64") * K + T.cast(word_k, "int64")
            ready = 0
            for p in T.unroll(2):
                at[p] = T.cuda.cvta_generic_to_shared(x_ring.ptr_to([0, 0, row + p * 4, (lane ^ ((row + p * 4) * 4)) * 2]))

            @T.inline
            def hand_over(pending):
                """The copies of the oldest 128-block that is on its way are done when all but ``pending`` are."""
                T.ptx["cp.async.wait_group"](pending)
                T.ptx.fence.proxy.async_.shared__cta()
                T.cuda.warp_sync()
                if lane == 0:
                    T.ptx.mbarrier.arrive.shared.b64(full.ptr_to([ready]))
                ready = T.if_then_else(ready == x_stages - 1, 0, ready + 1)

            T.ptx.griddepcontrol.wait()
            for kk in T.serial(count, unroll=False):
                if kk >= x_stages:
                    T.cuda.mbarrier_wait(empty.ptr_to([slot]), phase ^ 1)
                # Rows beyond M keep whatever was there: each only has a share in its own token's sums
                for n in T.unroll(tokens // PRODUCER_WARPS):
                    if n * PRODUCER_WARPS < in_row:
                        for box in T.unroll(BOXES):
                            to = T.meta_var(T.ptx.addr(at[n % 2] + T.cast(slot * x_bytes, "uint32"), n // 2 * 1024 + box * tokens * 128))
                            source_word = T.meta_var(T.ptx.addr(x.ptr_to([0, source_at]), (n * PRODUCER_WARPS * K + box * 16) * 2))
                            if whole_x:
                                T.ptx["cp.async.ca.shared.global"](to, source_word, 4)
                            else:
                                T.ptx["cp.async.ca.shared.global"](
                                    to, source_word, 4, T.if_then_else(kk * layout.TILE_K + word_k + box * 16 < K, T.uint32(4), T.uint32(0)))
                T.ptx["cp.async.commit_group"]()
                source_at = source_at + layout.TILE_K
                # Consumers free a slot when they have the next one: two must be theirs
                if kk >= x_stages - 2:
                    hand_over(x_stages - 2)
                advance()
            for n in T.unroll(x_stages - 2):
                if count - (x_stages - 2) + n >= 0:
                    hand_over(x_stages - 3 - n)
            T.ptx.griddepcontrol.launch_dependents()
            if cluster > 1:
                T.ptx.barrier.cluster.arrive.release.aligned()
                T.ptx.barrier.cluster.wait.acquire.aligned()
                T.ptx.barrier.cluster.arrive.relaxed.aligned()
                T.ptx.barrier.cluster.wait.aligned()
        else:
            T.ptx["setmaxnreg.inc.sync.aligned.u32"](config.consumer_registers)
            word = T.alloc_local((2, 4), "uint32")
            scale_bytes = T.alloc_local((1,), "uint32")
            scale = T.alloc_local((2, 2), "uint32")  # [group][row g or g + 8]
            fragment = T.alloc_local((4, 2, 4), "uint32")
            acc = T.alloc_local((warp_tiles, sums), "float32")
            other = T.alloc_local((cluster, 8), "float32")
            total = T.alloc_local((8,), "float32")
            remote = T.alloc_local((1,), "uint32")
            row_scale = T.alloc_local((2,), "float32")
            row_bias = T.alloc_local((2,), dtype)
            w_slot: T.int32
            descriptor: T.uint32
            x_address: T.uint32 = T.cuda.cvta_generic_to_shared(x_ring.ptr_to([0, 0, 0, 0])) // T.uint32(16)
            first_tile: T.int32 = row_tile * config.tiles + warp * warp_tiles

            @T.inline
            def copy_weight(into, kk):
                """Copy a 128-block of the warp's tiles; in place of tiles beyond N the last one."""
                for r in T.unroll(warp_tiles):
                    n_tile = T.meta_var(T.min(first_tile + r, n_tiles - 1))
                    for h in T.unroll(2):
                        T.ptx["cp.async.cg.shared.global.L2::128B"](w_ring.ptr_to([into, warp * warp_tiles + r, h, lane, 0]), words.ptr_to([n_tile, k_begin + kk, h, lane, 0]), 16)
                    T.ptx["cp.async.ca.shared.global"](s_ring.ptr_to([into, warp * warp_tiles + r, lane]), scales.ptr_to([n_tile, k_begin + kk, lane]), 4)

            @T.inline
            def read_weight(r):
                if r == 0:
                    T.ptx["cp.async.wait_group"](w_stages - 1)
                for h in T.unroll(2):
                    T.ptx["ld.shared.v4.u32"](word[h, 0], word[h, 1], word[h, 2], word[h, 3], w_ring.ptr_to([w_slot, warp * warp_tiles + r, h, lane, 0]))
                T.ptx["ld.shared.u32"](scale_bytes[0], s_ring.ptr_to([w_slot, warp * warp_tiles + r, lane]))

            # The epilogue should not wait for memory: its rows' lines of 128 bytes
            if tx < config.rows // 32:
                T.ptx["prefetch.global.L2"](global_scale.ptr_to([T.min(row_tile * config.rows + tx * 32, n_tiles * layout.TILE_N - 1)]))
                if problem.bias:
                    T.ptx["prefetch.global.L2"](bias.ptr_to([T.min(row_tile * config.rows + tx * 32, N - 1)]))
            for p in T.unroll(w_stages):
                if p < count:
                    copy_weight(p, p)
                T.ptx["cp.async.commit_group"]()
            for r in T.unroll(warp_tiles):
                for z in T.unroll(sums):
                    acc[r, z] = T.float32(0)
            w_slot = 0
            read_weight(0)
            T.evaluate(T.cuda.func_call(decode_scales, scale[0, 0], scale[0, 1], scale[1, 0], scale[1, 1], scale_bytes[0], source_code=source))
            for kk in T.serial(count, unroll=False):
                for r in T.unroll(warp_tiles):
                    if r == warp_tiles - 1:
                        # The slot's last words are in registers
                        if kk + w_stages < count:
                            copy_weight(w_slot, kk + w_stages)
                        T.ptx["cp.async.commit_group"]()
                        w_slot = T.if_then_else(w_slot == w_stages - 1, 0, w_slot + 1)
                    for step in T.unroll(layout.WORDS_PER_LANE // _GROUP):
                        for n in T.unroll(_GROUP):
                            i = T.meta_var(step * _GROUP + n)
                            for h in T.unroll(2):
                                T.evaluate(T.cuda.func_call(decode, fragment[i, h, 0], fragment[i, h, 1], fragment[i, h, 2], fragment[i, h, 3],
                                                            word[h, i], scale[i // 2, h], source_code=""))
                        if step == 0 and r == 0:
                            T.cuda.mbarrier_wait(full.ptr_to([slot]), phase)
                            descriptor = x_address + T.cast(slot * (x_bytes // 16), "uint32")
                        if step == layout.WORDS_PER_LANE // _GROUP - 1:
                            read_weight((r + 1) % warp_tiles)  # after the last 128-block it is not used
                        T.ptx.wgmma.fence.sync.aligned()
                        for n in T.unroll(_GROUP):
                            i = T.meta_var(step * _GROUP + n)
                            for j in T.unroll(2):
                                T.ptx[mma](*[acc[r, z] for z in range(sums)],
                                           fragment[i, 0, 2 * j], fragment[i, 1, 2 * j], fragment[i, 0, 2 * j + 1], fragment[i, 1, 2 * j + 1],
                                           T.uint64(DESCRIPTOR_HIGH) | T.cast(descriptor + T.uint32(i // 2 * (tokens * 8) + (i % 2 * 2 + j) * 2), "uint64"),
                                           T.bool(True), 1, 1, 0)
                        T.ptx.wgmma.commit_group.sync.aligned()
                        T.ptx.wgmma.wait_group.sync.aligned(1)
                        if step == 0 and r == 0:
                            # The last group of the previous 128-block is done
                            if kk > 0:
                                if lane == 0:
                                    T.ptx.mbarrier.arrive.shared.b64(empty.ptr_to([T.if_then_else(slot == 0, x_stages - 1, slot - 1)]))
                    T.evaluate(T.cuda.func_call(decode_scales, scale[0, 0], scale[0, 1], scale[1, 0], scale[1, 1], scale_bytes[0], source_code=source))
                advance()
            T.ptx.griddepcontrol.launch_dependents()
            T.ptx.wgmma.wait_group.sync.aligned(0)
            for r in T.unroll(warp_tiles):
                for z in T.unroll(sums):
                    T.evaluate(T.cuda.func_call("nvfp4_keep", acc[r, z], source_code=KEEP))

            # All warps are done with the stages: the sums take their place
            T.ptx.bar.sync(T.uint32(1), T.uint32(warps * 32))
            for r in T.unroll(warp_tiles):
                for c in T.unroll(chunks):
                    T.ptx["st.shared.v4.f32"](partial.ptr_to([warp * warp_tiles + r, c, lane, 0]), acc[r, c * 4], acc[r, c * 4 + 1], acc[r, c * 4 + 2], acc[r, c * 4 + 3])
            if cluster > 1:
                T.ptx.barrier.cluster.arrive.release.aligned()
                T.ptx.barrier.cluster.wait.acquire.aligned()
            else:
                T.ptx.bar.sync(T.uint32(1), T.uint32(warps * 32))
            T.ptx.griddepcontrol.wait()  # also for the residual

            for turn_ in T.serial((pieces + (cluster * warps - 1)) // (cluster * warps)):
                share: T.int32 = (turn_ * cluster + rank) * warps + warp
                pair: T.int32 = share // config.tiles
                own: T.int32 = share - pair * config.tiles
                pair_token: T.int32 = first_token + pair * PIECE_TOKENS
                if share < pieces:
                    if pair_token < rows:
                        load_rows(row_tile * config.tiles + own, lane, global_scale, bias, row_scale, row_bias)
                        here: T.uint32 = T.cuda.cvta_generic_to_shared(partial.ptr_to([own, pair * 2, lane, 0]))
                        for z in T.unroll(8):
                            total[z] = T.float32(0)
                        for o in T.unroll(cluster):
                            if cluster > 1:
                                T.ptx.mapa.shared__cluster.u32(remote[0], here, T.uint32(o))
                            else:
                                remote[0] = here
                            for c in T.unroll(2):
                                T.ptx["ld.shared::cluster.v4.f32"](*[other[o, c * 4 + z] for z in range(4)], remote[0] + T.uint32(c * layout.LANES * 16))
                        for o in T.unroll(cluster):
                            for z in T.unroll(8):
                                total[z] = total[z] + other[o, z]
                        store(total, 0, row_tile * config.tiles + own, pair_token, M, warp, lane, row_scale, row_bias, residual, out, staging)
            if cluster > 1:
                # No block leaves while others read its sums
                T.ptx.barrier.cluster.arrive.relaxed.aligned()
                T.ptx.barrier.cluster.wait.aligned()
    # fmt: on
    taken = {*(f"{name}_ptr" for name in ("x", "residual", "out")), *arguments(problem)}
    if not problem.residual:
        taken.discard("residual_ptr")
    params = [param for param in matmul.params if param.name in taken]
    return PrimFunc(params, matmul.body, matmul.ret_type, matmul.attrs).with_attr(*PDL)
