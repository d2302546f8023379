"""Lowering of scheduled mma.sync GEMMs: TVM's ``s_tir`` pipeline with three changes.

1. ``LowerMatchBuffer`` runs before ``CompactBufferAllocation``, which otherwise sees the whole regions that tensor
   intrinsics match and keeps the lane axis of register fragments.
2. Copies to shared memory become ``cp.async`` with zero fill, by :func:`lower_async_copies`: TVM's own pass takes
   64-bit offsets for 32-bit ones and knows no reinterpreted sources.
3. Barriers come from :func:`place_barriers`, one an iteration of the pipeline, instead of from ``ThreadSync``,
   which inserts three. ``StorageRewrite`` does not run: it would give shared buffers another dtype.
"""

from __future__ import annotations

from collections.abc import Callable

import tvm
from tvm import s_tir, tirx
from tvm.tirx import compilation_pipeline
from tvm.tirx.script.builder import ir as T

#: Name of the pipeline, for ``tvm.compile(mod, target, tir_pipeline=MMA_PIPELINE)``.
MMA_PIPELINE = "nvfp4_mma"
#: Loop annotation: a barrier stands before the loop.
BARRIER_BEFORE = "pragma_nvfp4_barrier"

COMMIT, WAIT = "async_commit_queue_scope", "async_wait_queue_scope"

_SHARED = ("shared", "shared.dyn")
_VECTORS = {4: "unsigned", 8: "uint2", 16: "uint4"}
_ZERO = """
__device__ __forceinline__ void nvfp4_zero_{bytes}(void* to) {{ *({vector}*)to = {vector}{{}}; }}
"""
_CP_ASYNC = """
__device__ __forceinline__ void nvfp4_cp_async_{bytes}(void* to, const void* from, bool inside) {{
  asm volatile("cp.async.{cache}.shared.global [%0], [%1], {bytes}, %2;"
      :: "r"((unsigned)__cvta_generic_to_shared(to)), "l"(from), "r"(inside ? {bytes} : 0));
}}
__device__ __forceinline__ void nvfp4_cp_async_{bytes}(void* to, const void* from) {{
  asm volatile("cp.async.{cache}.shared.global [%0], [%1], {bytes};"
      :: "r"((unsigned)__cvta_generic_to_shared(to)), "l"(from));
}}
"""


def rewrite(stmt: tirx.Stmt, visit: Callable[[tirx.Stmt], tirx.Stmt]) -> tirx.Stmt:
    """Rebuild a statement from the leaves up, each replaced by what ``visit`` makes of it."""
    if isinstance(stmt, tirx.SeqStmt):
        stmt = tirx.SeqStmt([rewrite(child, visit) for child in stmt.seq])
    elif isinstance(stmt, tirx.AttrStmt):
        stmt = tirx.AttrStmt(stmt.node, stmt.attr_key, stmt.value, rewrite(stmt.body, visit))
    elif isinstance(stmt, tirx.For):
        body = rewrite(stmt.body, visit)
        stmt = _with_body(stmt, body)
    elif isinstance(stmt, tirx.IfThenElse):
        other = None if stmt.else_case is None else rewrite(stmt.else_case, visit)
        stmt = tirx.IfThenElse(stmt.condition, rewrite(stmt.then_case, visit), other)
    return visit(stmt)


def _with_body(loop: tirx.For, body: tirx.Stmt) -> tirx.For:
    binding = loop.thread_binding
    return tirx.For(
        loop.loop_var, loop.min, loop.extent, loop.kind, body, binding, loop.annotations, loop.step
    )


def _is_attr(stmt: tirx.Stmt, key: str) -> bool:
    return isinstance(stmt, tirx.AttrStmt) and stmt.attr_key == key


def _barrier() -> tirx.Stmt:
    return tirx.Evaluate(T.tvm_storage_sync("shared.dyn"))


def _is_barrier(stmt: tirx.Stmt) -> bool:
    return isinstance(stmt, tirx.Evaluate) and _calls(stmt.value, "tirx.tvm_storage_sync")


@tirx.transform.prim_func_pass(opt_level=0, name="PlaceBarriers")
def place_barriers(func: tirx.PrimFunc, _mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tirx.PrimFunc:
    """Make one barrier an iteration do for a ``cp.async`` pipeline, and expand ``BARRIER_BEFORE``.

    ``InjectSoftwarePipeline`` leaves a loop of ``copy(k + n); commit; wait(n); use(k)``, where n of n + 1 buffers
    are in flight. The copy overwrites what iteration k - 1 used, so it may only start when all threads are done
    with that. Waiting first, for one group less, makes the barrier after the wait say so as well:
    ``wait(n - 1); barrier; copy(k + n); commit; use(k)``. After the loop a barrier follows each wait.
    """

    def wait_first(stmt: tirx.Stmt) -> tirx.Stmt:
        if not isinstance(stmt, tirx.For) or not isinstance(stmt.body, tirx.SeqStmt):
            return stmt
        copies, *uses = stmt.body.seq
        if not any(_is_attr(child, COMMIT) for child in stmt.body.seq):
            return stmt
        if not _is_attr(copies, COMMIT) or not _is_attr(uses[0], WAIT):
            # A copy before the barrier would overwrite what slower threads still read
            raise tvm.error.InternalError(f"pipeline: expected copies, then their wait, found {stmt.body}")
        wait, use = uses[0], uses[0].body.body
        body = tirx.SeqStmt([_wait(wait, int(wait.body.value) - 1, _barrier()), copies, use, *uses[1:]])
        return _with_body(stmt, body)

    def expand(stmt: tirx.Stmt) -> tirx.Stmt:
        if _is_attr(stmt, BARRIER_BEFORE):
            return tirx.SeqStmt([_barrier(), stmt.body])
        if _is_attr(stmt, WAIT) and not _is_barrier(stmt.body.body):
            return tirx.SeqStmt([_wait(stmt, stmt.body.value, _barrier()), stmt.body.body])
        return stmt

    return func.with_body(rewrite(rewrite(func.body, wait_first), expand))


def _wait(like: tirx.AttrStmt, in_flight: tirx.Expr | int, body: tirx.Stmt) -> tirx.AttrStmt:
    inner = tirx.AttrStmt(like.body.node, like.body.attr_key, in_flight, body)
    return tirx.AttrStmt(like.node, like.attr_key, like.value, inner)


@tirx.transform.prim_func_pass(opt_level=0, name="LowerAsyncCopies")
def lower_async_copies(
    func: tirx.PrimFunc, _mod: tvm.IRModule, _ctx: tvm.transform.PassContext
) -> tirx.PrimFunc:
    """Turn stores to shared memory inside ``async_scope`` into ``cp.async``.

    Of ``shared[..] = global[..]`` and ``shared[..] = if inside then global[..] else 0``, where the load may be
    reinterpreted as another dtype of its width. Where ``inside`` is false nothing is read (PTX ISA, ``cp.async``:
    the bytes beyond ``src-size`` are zero).
    """

    def visit(stmt: tirx.Stmt) -> tirx.Stmt:
        if _is_attr(stmt, "async_scope"):
            return rewrite(stmt.body, copy)
        return stmt

    def copy(stmt: tirx.Stmt) -> tirx.Stmt:
        if not isinstance(stmt, tirx.BufferStore) or stmt.buffer.scope() not in _SHARED:
            return stmt
        value, inside = stmt.value, []
        if _calls(value, "prim.if_then_else"):
            value, inside = value.args[1], [value.args[0]]
        if _calls(value, "tirx.reinterpret"):
            value = value.args[0]
        (to,) = stmt.indices
        size = _lanes(to) * tvm.DataType(stmt.buffer.dtype).itemsize
        if size not in _VECTORS:
            raise tvm.error.InternalError(f"cp.async: copies 4, 8 or 16 bytes, found {size} in {stmt}")
        arguments = [T.address_of(stmt.buffer[_base(to)])]
        if _is_zero(value):
            # What is known to lie outside, such as stages beyond K
            name, source = f"nvfp4_zero_{size}", _ZERO.format(bytes=size, vector=_VECTORS[size])
        elif isinstance(value, tvm.ir.TensorLoad) and _lanes(value.indices[0]) == _lanes(to):
            name = f"nvfp4_cp_async_{size}"
            source = _CP_ASYNC.format(bytes=size, cache="cg" if size == 16 else "ca")
            arguments += [T.address_of(value.source[_base(value.indices[0])]), *inside]
        else:
            raise tvm.error.InternalError(f"cp.async: {stmt.value} is not a copy from global memory")
        return tirx.Evaluate(T.cuda.func_call(name, *arguments, source_code=source))

    return func.with_body(rewrite(func.body, visit))


def _calls(value: tirx.Expr, name: str) -> bool:
    return isinstance(value, tvm.ir.Call) and getattr(value.op, "name", None) == name


def _is_zero(value: tirx.Expr) -> bool:
    element = value.value if isinstance(value, tirx.Broadcast) else value
    return isinstance(element, tirx.IntImm) and int(element) == 0


def _lanes(index: tirx.Expr) -> int:
    """Consecutive elements of an index: a ramp, or a ramp plus the offset of a merged buffer."""
    if isinstance(index, tirx.Add) and isinstance(index.b, tirx.Broadcast):
        return _lanes(index.a)
    return int(index.lanes) if isinstance(index, tirx.Ramp) else 1


def _base(index: tirx.Expr) -> tirx.Expr:
    if isinstance(index, tirx.Add) and isinstance(index.b, tirx.Broadcast):
        return _base(index.a) + index.b.value
    return index.base if isinstance(index, tirx.Ramp) else index


def _passes() -> list[tvm.transform.Pass]:
    return [
        s_tir.transform.CanonicalizeLoop(),
        s_tir.transform.LowerCrossThreadReduction(),
        s_tir.transform.LowerInitBlock(),
        s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
        s_tir.transform.ConvertBlocksToOpaque(),
        s_tir.transform.LiftThreadBinding(),
        s_tir.transform.LowerMatchBuffer(),
        s_tir.transform.CompactBufferAllocation(),
        s_tir.transform.UnifyThreadBinding(),
        s_tir.transform.StmtSimplify(),
        s_tir.transform.InjectSoftwarePipeline(),
        s_tir.transform.LowerOpaqueBlock(),
        tirx.transform.FlattenBuffer(),
        tirx.transform.BF16ComputeLegalize(),
        tirx.transform.NarrowDataType(32),
        s_tir.transform.LoopPartition(),
        tirx.transform.VectorizeLoop(True),
        s_tir.transform.HoistIfThenElse(),
        tirx.transform.UnrollLoop(),
        s_tir.transform.RenormalizeSplitPattern(),
        tirx.transform.StmtSimplify(),
        tirx.transform.RemoveNoOp(),
        s_tir.transform.RewriteUnsafeSelect(),
        place_barriers,
        tirx.transform.CommonSubexprElim(),
        tirx.transform.VerifyMemory(),
        tirx.transform.AnnotateEntryFunc(),
        # While copies are still stores: it does not see what address_of accesses
        s_tir.transform.MergeSharedMemoryAllocations(),
        lower_async_copies,
        tirx.transform.SplitHostDevice(),
        tirx.transform.MakePackedAPI(),
        tirx.transform.BF16StorageLegalize(),
    ]


def mma_pipeline() -> tuple:
    """Return the passes, and TVM's finalization of host and of device code."""

    @tvm.transform.module_pass(opt_level=0, name="MmaPipeline")
    def lower(mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        return tvm.ir.transform.Sequential(_passes())(mod)

    return lower, s_tir.pipeline.finalize_host_passes, s_tir.pipeline.finalize_device_passes


compilation_pipeline.register_tir_pipeline(MMA_PIPELINE, mma_pipeline)
