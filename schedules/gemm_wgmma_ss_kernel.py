"""wgmma GEMM with both operands in shared memory."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from nvfp4_tvm import layout
from nvfp4_tvm.schedules import stream_k
from nvfp4_tvm.schedules.activation_layout import PDL
from nvfp4_tvm.schedules.base import MatmulProblem
from nvfp4_tvm.schedules.epilogue import row_value, silu
from nvfp4_tvm.schedules.gemm_wgmma_config import WARPGROUP_WARPS
from nvfp4_tvm.schedules.gemm_wgmma_ss_config import (
    BOX_BYTES, BOX_K, BOXES, PIECE, REGISTERS, ROWS, STEP, WARPGROUPS, WARPS,
    SharedWgmmaConfig,
)
from nvfp4_tvm.schedules.intrin.fp4_decode import cuda_decoder, decode_name, scales_name

_LOAD_WORDS = "ld.global.nc.L1::no_allocate.L2::128B.v4.u32"
_LOAD_SCALES = "ld.global.nc.L1::no_allocate.L2::128B.u32"
_TENSOR_COPY = "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
_PTX_TYPE = {"bfloat16": "bf16", "float16": "f16"}
_PACK = {"bfloat16": "cvt.rn.bf16x2.f32", "float16": "cvt.rn.f16x2.f32"}
#: Keeps reads of an accumulator behind the wait for wgmma, which the compiler does not know to write it.
_KEEP = 'static __device__ __forceinline__ void nvfp4_keep(float& r) { asm volatile("" : "+f"(r) :: "memory"); }\n'
#: Matrix descriptor (PTX ISA, "Matrix Descriptor"): 128-byte swizzle is 1 in bits 63..62; eight rows of 128 bytes are
#: 1024 bytes apart, in 16 bytes, in bits 45..32. The leading offset is not used by swizzled K-major layouts.
_DESCRIPTOR_HIGH = (1 << 62) | (1024 // 16) << 32
#: Accumulators that are read from memory before they are added: enough to hide the latency.
_BATCH = 8
#: 128-blocks of weights that a decoding thread holds in registers, the one it decodes included.
AHEAD = 2
#: CUtensorMap: 128-byte swizzle, promotion of L2 reads to 256 bytes.
_SWIZZLE_128B, _L2_256B = 3, 3


def _select(condition: Any, a: Any, b: Any) -> Any:
    return T.if_then_else(condition, a, b)


def arguments(problem: MatmulProblem) -> tuple[str, ...]:
    """Names of the kernel's arguments, in order."""
    optional = (name for name in ("bias", "residual") if getattr(problem, name))
    return ("x", "words", "scales", "global_scale", *optional, "partials", "flags", "out")


def zero_flags_kernel(shape: tuple[int, int]) -> PrimFunc:
    """The launch that sets the flags of the next one to zero."""
    count = shape[0] * shape[1]

    # fmt: off
    @T.prim_func
    def zero(flags: T.Buffer(shape, "uint32")):
        T.device_entry()
        bx = T.cta_id([1])
        tx = T.thread_id([1024])
        T.ptx.griddepcontrol.launch_dependents()
        T.ptx.griddepcontrol.wait()
        for f in T.serial((count + 1023) // 1024):
            if f * 1024 + tx < count:
                flags[(f * 1024 + tx) // shape[1], (f * 1024 + tx) % shape[1]] = T.uint32(0)
    # fmt: on
    return zero.with_attr(*PDL)


def matmul_kernel(problem: MatmulProblem, config: SharedWgmmaConfig, sms: int) -> PrimFunc:
    """Return the kernel, a function of `arguments`."""
    N, K, out_N = problem.N, problem.K, problem.out_N
    n_tiles, blocks = layout.tiles(N, K)
    tokens, warps, x_stages, w_stages, cluster = config.tokens, WARPS, config.x_stages, config.w_stages, config.cluster
    row_tiles = -(-n_tiles // (warps * cluster))
    grid = config.grid(sms)
    groups = grid // cluster
    producers = config.decoders * WARPGROUP_WARPS
    own_tiles = warps // producers  # 16-row tiles of a decoding warp
    producer_registers, consumer_registers = REGISTERS[config.decoders]
    overhead = config.overhead
    dtype, out_dtype = problem.x_dtype, problem.out_dtype
    mma = f"wgmma.mma_async.sync.aligned.m64n{tokens}k16.f32.{_PTX_TYPE[dtype]}.{_PTX_TYPE[dtype]}"
    # One source holds both functions; TVM emits a source a function
    source, decode, decode_scales = cuda_decoder(dtype), decode_name(dtype), scales_name(dtype)
    copy_x = _TENSOR_COPY + (".multicast::cluster" if cluster > 1 else "")
    share = tokens // cluster
    mask = [T.uint16((1 << cluster) - 1)] if cluster > 1 else []
    x_bytes = tokens * BOX_BYTES
    w_bytes = ROWS * BOX_BYTES
    gated = problem.activation == "silu_mul"
    has_bias, has_residual = problem.bias, problem.residual
    halves = 1 if gated else 2  # groups of eight output columns of a warp
    columns = 8 * halves
    bulk = out_dtype in _PACK and out_N % 8 == 0
    store_columns = 4 * columns  # output columns of a warpgroup
    chunk_mask = 3 if gated else 7
    chunk_shift = 1 if gated else 0
    sums = tokens // 2  # accumulators of a thread
    chunks = tokens // 8

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
        T.call_packed("runtime.cuTensorMapEncodeTiled", x_map, dtype, 2, x.data, K, M, K * 2, BOX_K, share, 1, 1, 0, _SWIZZLE_128B, _L2_256B, 0)
        out_map: T.let[T.handle("tensormap")] = T.tvm_stack_alloca("tensormap", 1)
        if bulk:
            T.call_packed("runtime.cuTensorMapEncodeTiled", out_map, out_dtype, 2, out.data, out_N, M, out_N * 2, store_columns, PIECE, 1, 1, 0, 2 if gated else _SWIZZLE_128B, 0, 0)
        T.device_entry()
        T.attr({"tirx.launch_bounds_min_blocks_per_sm": 1})
        # Variables, not lets: TVM substitutes lets and then simplifies nested quotients for a minute
        block = T.cta_id([grid])
        rank = T.cta_id_in_cluster([cluster])
        tx = T.thread_id([config.threads])
        warp: T.let = tx // 32
        lane: T.let = tx % 32
        g: T.let = lane // 4
        q: T.let = lane % 4
        group: T.int32
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
        store_ring = pool.alloc((WARPGROUPS, 2, STEP, store_columns), "uint16", align=1024)
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
                T.ptx.mbarrier.init.shared.b64(empty_x.ptr_to([i]), T.uint32(warps * cluster))
            for i in T.unroll(w_stages):
                for w in T.unroll(WARPGROUPS):
                    T.ptx.mbarrier.init.shared.b64(full_w.ptr_to([i, w]), T.uint32(producers // WARPGROUPS))
                    T.ptx.mbarrier.init.shared.b64(empty_w.ptr_to([i, w]), T.uint32(WARPGROUP_WARPS))
            if cluster > 1:
                T.ptx.fence.mbarrier_init.release.cluster()
        T.ptx.fence.proxy.async_.shared__cta()
        if cluster > 1:
            T.cuda.cluster_sync()
        else:
            T.cuda.cta_sync()
        x_slot = 0
        x_phase = 0
        w_slot = 0
        w_phase = 0

        @T.inline
        def plan():
            """The block's share of the work, for each role anew: it would be spilled across the wider of them."""
            group = block // cluster
            token_tiles = T.cast((M + (tokens - 1)) // tokens, "int32")
            tiles: T.int32 = token_tiles * row_tiles
            sharing = stream_k.sharing_blocks(tiles, groups, _select)
            cut = stream_k.cut_tiles(tiles, sharing, blocks, groups, overhead, _select)
            units = cut * blocks
            begin = stream_k.first_unit(group, units, sharing, _select)
            end = stream_k.first_unit(group + 1, units, sharing, _select)
            last_cut = T.max(end - 1, 0) // blocks
            runs = T.if_then_else(end > begin, last_cut - begin // blocks + 1, 0)
            segments = runs + stream_k.whole_tiles(tiles, cut, group, groups)

        @T.inline
        def enter(segment):
            """The segment's tile and 128-blocks: cut tiles from the back, then whole ones."""
            tile = T.if_then_else(segment < runs, last_cut - segment, cut + (segment - runs) * groups + group)
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
            word = T.alloc_local((AHEAD, own_tiles, 2, 4), "uint32")
            scale_bytes = T.alloc_local((AHEAD, own_tiles), "uint32")
            scale = T.alloc_local((own_tiles, 2, 2), "uint32")  # [tile][group][row g or g + 8]
            decoded = T.alloc_local((4,), "uint32")
            producer: T.let = warp - warps
            half: T.let = producer // (producers // WARPGROUPS)  # the warpgroup whose rows it decodes
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
            def copy_box(j, kk, token_tile):
                if producer == j:
                    T.cuda.mbarrier_wait(empty_x.ptr_to([x_slot]), x_phase ^ 1)
                    if lane == 0:
                        T.ptx.mbarrier.arrive.expect_tx.shared.b64(full_x.ptr_to([x_slot]), T.uint32(x_bytes))
                        T.ptx[copy_x](x_ring.ptr_to([x_slot, rank * share, 0]), T.address_of(x_map),
                                      (k_begin + kk) * layout.TILE_K + j * BOX_K, token_tile * tokens + rank * share, full_x.ptr_to([x_slot]), *mask)
                    T.cuda.warp_sync()
                advance_x()

            for i in T.unroll(4):
                to[i] = T.cuda.cvta_generic_to_shared(w_ring.ptr_to([0, quad // 2, producer * (own_tiles * 16) + row, ((quad % 2 * 4 + i) ^ row) * 8]))
            for segment in T.serial(segments):
                enter(segment)
                row_tile: T.int32 = tile // token_tiles
                token_tile: T.int32 = tile - row_tile * token_tiles
                length: T.int32 = k_end - k_begin
                first_tile = (row_tile * cluster + rank) * warps + producer * own_tiles
                load(0, k_begin)
                if segment == 0 and producer < BOXES:
                    T.ptx.griddepcontrol.wait()
                for round in T.serial((length + (AHEAD - 1)) // AHEAD):
                    for u in T.unroll(AHEAD):
                        kk: T.int32 = round * AHEAD + u
                        if kk < length:
                            # Before the branches that wait: the next words must not be waited for here
                            for t in T.unroll(own_tiles):
                                T.evaluate(T.cuda.func_call(decode_scales, scale[t, 0, 0], scale[t, 0, 1], scale[t, 1, 0], scale[t, 1, 1], scale_bytes[u, t], source_code=source))
                            copy_box(0, kk, token_tile)
                            T.cuda.mbarrier_wait(empty_w.ptr_to([w_slot, half]), w_phase ^ 1)
                            # Between two branches ptxas leaves them where they are, early
                            load(AHEAD - 1 - u, T.min(k_begin + kk + 1, k_end - 1))
                            copy_box(1, kk, token_tile)
                            for t in T.unroll(own_tiles):
                                for i in T.unroll(4):
                                    for h in T.unroll(2):
                                        T.evaluate(T.cuda.func_call(decode, decoded[0], decoded[1], decoded[2], decoded[3], word[u, t, h, i], scale[t, i // 2, h], source_code=""))
                                        T.ptx["st.shared.v4.u32"](to[i] + T.cast(w_slot * (BOXES * w_bytes), "uint32") + T.uint32((t * 16 + h * 8) * BOX_BYTES),
                                                                  decoded[0], decoded[1], decoded[2], decoded[3])
                            T.ptx.fence.proxy.async_.shared__cta()
                            T.cuda.warp_sync()
                            if lane == 0:
                                T.ptx.mbarrier.arrive.shared.b64(full_w.ptr_to([w_slot, half]))
                            advance_w()
        else:
            T.ptx["setmaxnreg.inc.sync.aligned.u32"](consumer_registers)
            plan()
            acc = T.alloc_local((sums,), "float32")
            other = T.alloc_local((_BATCH, 4), "float32")
            value = T.alloc_local((2, 2, 2), "float32")  # [8-token chunk][row half][token]
            row_scale = T.alloc_local((2,), "float32")
            row_bias = T.alloc_local((2,), dtype)
            packed = T.alloc_local((4,), "uint32")
            flag = T.alloc_local((1,), "uint32")
            remote = T.alloc_local((1,), "uint32")
            x_address: T.uint32 = T.cuda.cvta_generic_to_shared(x_ring.ptr_to([0, 0, 0])) // T.uint32(16)
            w_address: T.uint32 = T.cuda.cvta_generic_to_shared(w_ring.ptr_to([0, 0, 0, 0])) // T.uint32(16) + T.cast(warp // 4 * (64 * BOX_BYTES // 16), "uint32")
            x_at: T.uint32
            w_at: T.uint32

            @T.inline
            def release_x(slot):
                if cluster > 1:
                    if lane < cluster:
                        T.ptx["mapa.shared::cluster.u32"](remote[0], T.cuda.cvta_generic_to_shared(empty_x.ptr_to([slot])), T.cast(lane, "uint32"))
                        T.ptx["mbarrier.arrive.shared::cluster.b64"](remote[0])
                else:
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
                                       T.uint64(_DESCRIPTOR_HIGH) | T.cast(w_at + T.uint32(i * 2), "uint64"),
                                       T.uint64(_DESCRIPTOR_HIGH) | T.cast(x_at + T.uint32(i * 2), "uint64"),
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
                    T.evaluate(T.cuda.func_call("nvfp4_keep", acc[i], source_code=_KEEP))

                if k_stop < blocks:
                    # A later block finishes the tile
                    for j in T.unroll(chunks):
                        T.ptx["st.global.cg.v4.f32"](partials.ptr_to([block, j, tx, 0]), acc[j * 4], acc[j * 4 + 1], acc[j * 4 + 2], acc[j * 4 + 3])
                    T.ptx.fence.acq_rel.gpu()
                    T.cuda.warp_sync()
                    if lane == 0:
                        T.ptx["st.release.gpu.global.u32"](flags.ptr_to([block, warp]), T.uint32(1))
                else:
                    if k_first > 0:
                        first: T.int32 = stream_k.first_block(this, blocks, units, sharing)
                        for o in T.serial((group - first + 31) // 32):
                            polled: T.int32 = first + o * 32 + lane
                            if polled < group:
                                if stream_k.first_unit(polled + 1, units, sharing, _select) > stream_k.first_unit(polled, units, sharing, _select):
                                    flag[0] = T.uint32(0)
                                    while flag[0] == T.uint32(0):
                                        T.ptx["ld.acquire.gpu.global.u32"](flag[0], flags.ptr_to([polled * cluster + rank, warp]))
                            T.cuda.warp_sync()
                        for o in T.serial(group - first):
                            added: T.int32 = first + o
                            if stream_k.first_unit(added + 1, units, sharing, _select) > stream_k.first_unit(added, units, sharing, _select):
                                for batch in T.unroll((chunks + (_BATCH - 1)) // _BATCH):
                                    for j in T.unroll(_BATCH):
                                        if batch * _BATCH + j < chunks:
                                            T.ptx["ld.global.cg.v4.f32"](other[j, 0], other[j, 1], other[j, 2], other[j, 3], partials.ptr_to([added * cluster + rank, batch * _BATCH + j, tx, 0]))
                                    for j in T.unroll(_BATCH):
                                        if batch * _BATCH + j < chunks:
                                            for e in T.unroll(4):
                                                acc[(batch * _BATCH + j) * 4 + e] = acc[(batch * _BATCH + j) * 4 + e] + other[j, e]
                    tile_row: T.int32 = (row_tile * cluster + rank) * warps + warp
                    row: T.int32 = T.min(tile_row, n_tiles - 1) * layout.TILE_N + g
                    for h in T.unroll(2):
                        row_scale[h] = global_scale[row + h * 8]
                        if has_bias:
                            row_bias[h] = bias[T.min(row + h * 8, N - 1)]
                    column: T.int32 = tile_row * columns
                    own_column: T.int32 = column + g
                    own_token: T.int32 = token_tile * tokens + q * 2
                    rows: T.int32 = T.cast(M, "int32")
                    for pair in T.unroll(chunks // 2):
                        if bulk:
                            if pair * 16 % STEP == 0:
                                if tx % 128 == 0:
                                    # The first half's last store is of the tile before
                                    T.ptx["cp.async.bulk.wait_group.read"](0 if pair == 0 else 1)
                                T.cuda.warpgroup_sync(1 + warp // 4)
                        # Nor may all residuals be read ahead: registers
                        T.evaluate(T.cuda.func_call("nvfp4_keep", acc[pair * 8], source_code=_KEEP))
                        for c in T.unroll(2):
                            for t in T.unroll(2):
                                z = T.meta_var((pair * 2 + c) * 4 + t)
                                token: T.int32 = own_token + (pair * 16 + c * 8 + t)
                                if gated:
                                    value[c, 0, t] = silu(row_value(acc[z], row_scale[0], row_bias[0] if has_bias else None)) * row_value(
                                        acc[z + 2], row_scale[1], row_bias[1] if has_bias else None)
                                else:
                                    for h in T.unroll(2):
                                        value[c, h, t] = row_value(acc[z + h * 2], row_scale[h], row_bias[h] if has_bias else None)
                                for h in T.unroll(halves):
                                    if has_residual:
                                        value[c, h, t] = value[c, h, t] + T.cast(residual[T.cast(T.min(token, rows - 1), "int64"), T.min(own_column + h * 8, out_N - 1)], "float32")
                                    if not bulk:
                                        if token < rows:
                                            if own_column + h * 8 < out_N:
                                                out[T.cast(token, "int64"), own_column + h * 8] = T.cast(value[c, h, t], out_dtype)
                            if bulk:
                                for h in T.unroll(halves):
                                    T.ptx[_PACK[out_dtype]](packed[c * halves + h], value[c, h, 1], value[c, h, 0])
                        if bulk:
                            stage = T.meta_var(pair * 16 // STEP % 2)
                            at = T.meta_var(pair * 16 % STEP)
                            if gated:
                                T.ptx["stmatrix.sync.aligned.m8n8.x2.trans.shared.b16"](
                                    store_ring.ptr_to([warp // 4, stage, at + lane % 16, ((warp % 4) ^ (lane % 8 // 2)) * 8]), packed[0], packed[1])
                            else:
                                T.ptx["stmatrix.sync.aligned.m8n8.x4.trans.shared.b16"](
                                    store_ring.ptr_to([warp // 4, stage, at + lane // 16 * 8 + lane % 8, ((warp % 4 * 2 + lane // 8 % 2) ^ (lane % 8)) * 8]), packed[0], packed[1], packed[2], packed[3])
                            if (pair + 1) * 16 % STEP == 0 or (pair + 1) * 2 == chunks:
                                T.ptx.fence.proxy.async_.shared__cta()
                                T.cuda.warpgroup_sync(1 + warp // 4)
                                if tx % 128 == 0:
                                    for piece in T.unroll(STEP // PIECE):
                                        if piece * PIECE <= at:
                                            T.ptx["cp.async.bulk.tensor.2d.global.shared::cta.bulk_group"](
                                                T.address_of(out_map), column - warp % 4 * columns, token_tile * tokens + (pair * 16 - at + piece * PIECE),
                                                store_ring.ptr_to([warp // 4, stage, piece * PIECE, 0]))
                                    T.ptx["cp.async.bulk.commit_group"]()
            if bulk:
                # Shared memory must not go before it was read
                if tx % 128 == 0:
                    T.ptx["cp.async.bulk.wait_group.read"](0)
        if cluster > 1:
            # Shared memory of a block that another one copies to, and signals, must not go before that
            T.cuda.cluster_sync()
    # fmt: on
    taken = {*arguments(problem)}
    params = [param for param in matmul.params if param.name.removesuffix("_ptr") in taken]
    return PrimFunc(params, matmul.body, matmul.ret_type, matmul.attrs).with_attr(*PDL)
