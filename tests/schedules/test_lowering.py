"""The two passes that are ours, on small functions, and the pipeline by its name."""

import re

import pytest
import tvm
from tvm import tirx
from tvm.script import tirx as T

from nvfp4_tvm.codegen import cuda_machine_code
from nvfp4_tvm.schedules.lowering import (
    BARRIER_BEFORE,
    MMA_PIPELINE,
    lower_async_copies,
    place_barriers,
)
from nvfp4_tvm.target import cuda_target


def evaluate(name):
    return tirx.Evaluate(tirx.call_extern("int32", name))


def commit(name):
    return tirx.AttrStmt(tirx.const(0, "int32"), "async_commit_queue_scope", 0, evaluate(name))


def wait(count, name):
    zero = tirx.const(0, "int32")
    inner = tirx.AttrStmt(zero, "async_wait_inflight_count", count, evaluate(name))
    return tirx.AttrStmt(zero, "async_wait_queue_scope", 0, inner)


def events(*stmts):
    """Apply the pass to a sequence; what happens, in order."""
    func = tirx.PrimFunc([], tirx.SeqStmt(list(stmts)))
    text = place_barriers(tvm.IRModule({"main": func}))["main"].script()
    found = re.findall(r'inflight_count", (\d)|tvm_storage_sync|"int32", "(\w+)"|async_(commit)', text)
    return " ".join(a or b or c or "barrier" for a, b, c in found)


def loop(*stmts):
    return tirx.For(tirx.Var("k", "int32"), 0, 8, tirx.ForKind.SERIAL, tirx.SeqStmt(list(stmts)))


def test_an_iteration_waits_first_for_one_group_less():
    found = events(evaluate("start"), loop(commit("copy"), wait(2, "use"), evaluate("more")))
    assert found == "start 1 barrier commit copy use more"


def test_around_the_loop_a_barrier_follows_each_wait():
    found = events(commit("copy"), loop(commit("next"), wait(1, "use")), wait(1, "last"), wait(0, "end"))
    assert found == "commit copy 0 barrier commit next use 1 barrier last 0 barrier end"


def test_a_loop_that_waits_elsewhere_is_an_error():
    with pytest.raises(tvm.error.InternalError, match="expected copies, then their wait"):
        events(evaluate("start"), loop(commit("copy"), evaluate("more"), wait(1, "use")))


def test_barrier_before_a_loop():
    loop = tirx.AttrStmt(tirx.const(0, "int32"), BARRIER_BEFORE, 1, evaluate("loop"))
    assert events(evaluate("before"), loop) == "before barrier loop"


def copies(vector, value):
    """CUDA source of a kernel that copies ``vector`` uint16 a thread to shared memory and back."""

    @T.prim_func(s_tir=True)
    def kernel(x: T.Buffer((64, vector), "bfloat16"), out: T.Buffer((64, vector), "uint16"), n: T.int32):
        for lane in T.thread_binding(64, "threadIdx.x"):
            with T.sblock("copy"):
                vl = T.axis.spatial(64, lane)
                shared = T.sblock_alloc_buffer((64, vector), "uint16", scope="shared.dyn")
                with T.attr(0, "async_scope", 1):
                    for i in T.vectorized(vector):
                        shared[vl, i] = value(x, vl, i, n)
                for i in T.vectorized(vector):
                    out[vl, i] = shared[vl, i]

    with cuda_machine_code("sm_89", ptx=False) as log:
        tvm.compile(tvm.IRModule({"main": kernel}), cuda_target("sm_89").target, tir_pipeline=MMA_PIPELINE)
    return log.modules[0].source


@pytest.mark.parametrize(("vector", "bytes_"), [(2, 4), (4, 8), (8, 16)])
def test_copies(vector, bytes_):
    source = copies(vector, lambda x, lane, i, n: T.reinterpret("uint16", x[lane, i]))
    call = source[source.rindex(f"nvfp4_cp_async_{bytes_}(") :]
    assert call.split(";")[0].count("(&") == 2 and "<" not in call.split(";")[0]
    assert ("cp.async.cg" in source) == (bytes_ == 16)


def test_copies_that_read_nothing_outside():
    source = copies(
        8,
        lambda x, lane, i, n: T.if_then_else(lane < n, T.reinterpret("uint16", x[lane, i]), T.uint16(0)),
    )
    call = source[source.rindex("nvfp4_cp_async_16(") :]
    assert "< n" in call.split(";")[0].replace("(", "").replace(")", "")


def test_zeros_are_plain_stores():
    source = copies(8, lambda x, lane, i, n: T.uint16(0))
    assert "nvfp4_cp_async" not in source


@pytest.mark.parametrize(
    ("vector", "value", "why"),
    [
        (1, lambda x, lane, i, n: T.reinterpret("uint16", x[lane, i]), "4, 8 or 16 bytes, found 2"),
        (8, lambda x, lane, i, n: T.reinterpret("uint16", x[lane, i]) + T.uint16(1), "not a copy"),
    ],
)
def test_what_is_no_copy_is_an_error(vector, value, why):
    with pytest.raises(tvm.error.InternalError, match=why):
        copies(vector, value)


def test_functions_without_copies_are_left_alone():
    func = tirx.PrimFunc([], evaluate("x"))
    mod = tvm.IRModule({"main": func})
    for one in (place_barriers, lower_async_copies):
        tvm.ir.assert_structural_equal(one(mod), mod)
