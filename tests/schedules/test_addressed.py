"""The LLVM helpers, in kernels as small as they come."""

import numpy as np
import pytest
import tvm
from tvm.script import tirx as T

from nvfp4_tvm.schedules import addressed
from nvfp4_tvm.target import resolve_target

LLVM = resolve_target("llvm").target


def built(function):
    with LLVM:
        return tvm.compile(tvm.IRModule({"main": function}), LLVM)["main"]


@pytest.mark.parametrize("offset", [0, 1, 3, 13])
@pytest.mark.parametrize(("dtype", "lanes"), [("uint8", 16), ("uint16", 8), ("uint32", 16), ("uint32", 1)])
def test_loads_from_any_address_and_stores_past_the_caches(offset, dtype, lanes):
    @T.prim_func(s_tir=True)
    def copy(address: T.uint64, out: T.Buffer((4 * lanes,), dtype)):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        with addressed.helpers(loads=[(dtype, lanes)], streams=[(dtype, lanes)]):
            for i in range(4):
                addressed.stream(
                    T.address_of(out[i * lanes]),
                    addressed.load(
                        dtype, lanes, addressed.advance(address, i * lanes * (np.dtype(dtype).itemsize))
                    ),
                )
            addressed.stream_end()

    source = np.random.default_rng(offset).integers(0, 256, 4 * lanes * 4 + 16, np.uint8)
    out = tvm.runtime.tensor(np.zeros(4 * lanes, dtype))
    built(copy)(source.ctypes.data + offset, out)
    expected = source[offset:][: 4 * lanes * np.dtype(dtype).itemsize].view(dtype)
    np.testing.assert_array_equal(out.numpy(), expected)
