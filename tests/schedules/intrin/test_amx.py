import cpu_kernels
import numpy as np
import pytest
import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from nvfp4_tvm.schedules.intrin import amx

X86 = {"kind": "llvm", "mtriple": "x86_64-linux-gnu"}


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ({**X86, "mcpu": "sapphirerapids"}, True),
        ({**X86, "mcpu": "sapphirerapids", "mattr": ["-amx-tile"]}, False),
        ({**X86, "mcpu": "skylake-avx512"}, False),
        ({"kind": "llvm", "mtriple": "x86_64-pc-windows-msvc", "mcpu": "sapphirerapids"}, False),
        ({"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a76"}, False),
    ],
)
def test_has_amx(target, expected):
    assert amx.has_amx(Target(target)) is expected


@pytest.mark.skipif(not amx.has_amx(cpu_kernels.host()), reason="this CPU has no AMX")
def test_one_product_of_tiles():
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        a = T.match_buffer(T.arg("a", T.handle()), (16, 16), amx.SCRATCH)
        b = T.match_buffer(T.arg("b", T.handle()), (16, 16), amx.SCRATCH)
        c = T.match_buffer(T.arg("c", T.handle()), (16, 16), amx.SCRATCH)
        amx.request_permission()
        config = T.alloc_buffer((16,), amx.SCRATCH)
        amx.configure(config)
        amx.zero(0)
        amx.load_tile(3, a, 0, 0)
        amx.load_tile(7, b, 0, 0)
        amx.multiply(0, 3, 7)
        amx.multiply(0, 3, 7)
        amx.store_tile(0, c, 0, 0)
        amx.release()
    kernel = tvm.compile(builder.get(), target=cpu_kernels.host())["main"]
    rng = np.random.default_rng()
    left, right = (rng.integers(-8, 9, (16, 32)).astype("bfloat16") for _ in range(2))
    pairs = np.ascontiguousarray(right.view(np.uint32).T)  # row k: the pair (2k, 2k + 1) of every column
    out = tvm.runtime.tensor(np.full((16, 16), np.nan, np.float32))
    kernel(*(tvm.runtime.tensor(bits.view(np.float32)) for bits in (left, pairs)), out)
    expected = 2 * left.astype(np.float32) @ right.astype(np.float32).T
    np.testing.assert_array_equal(out.numpy(), expected)
