"""Two small kernels that the codegen tests compile."""

import pytest
import tvm
from tvm.script import tirx as T


@T.prim_func(s_tir=True)
def _add_f32(
    a: T.Buffer((1024,), "float32"), b: T.Buffer((1024,), "float32"), c: T.Buffer((1024,), "float32")
):
    T.func_attr({"global_symbol": "add_f32"})
    for i in T.thread_binding(8, thread="blockIdx.x"):
        for j in T.thread_binding(128, thread="threadIdx.x"):
            with T.sblock("add"):
                v = T.axis.spatial(1024, i * 128 + j)
                c[v] = a[v] + b[v]


@T.prim_func(s_tir=True)
def _add_bf16(
    a: T.Buffer((1024,), "bfloat16"), b: T.Buffer((1024,), "bfloat16"), c: T.Buffer((1024,), "bfloat16")
):
    T.func_attr({"global_symbol": "add_bf16"})
    for i in T.thread_binding(8, thread="blockIdx.x"):
        for j in T.thread_binding(128, thread="threadIdx.x"):
            with T.sblock("add"):
                v = T.axis.spatial(1024, i * 128 + j)
                c[v] = a[v] + b[v]


@pytest.fixture(params=["float32", "bfloat16"])
def kernel(request) -> tvm.tirx.PrimFunc:
    return {"float32": _add_f32, "bfloat16": _add_bf16}[request.param]


@pytest.fixture
def bf16_kernel() -> tvm.tirx.PrimFunc:
    return _add_bf16
