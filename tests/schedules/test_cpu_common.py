import cpu_kernels
import numpy as np
import pytest
import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from nvfp4_tvm import layout
from nvfp4_tvm.schedules.base import MatmulProblem, MRange
from nvfp4_tvm.schedules.cpu_common import ROW_WORDS, horizontal_sum, scale_lanes
from nvfp4_tvm.schedules.cpu_gemm import CPUGemm
from nvfp4_tvm.schedules.cpu_gemv import CPUGemv

GUARD = 16


def aligned(shape, value):
    """A float32 array at a multiple of 64 bytes, which TVM takes without a copy."""
    size = int(np.prod(shape))
    memory = np.full(size + 16, value, np.float32)
    start = -memory.ctypes.data % 64 // 4
    return memory[start : start + size].reshape(shape)


def test_scale_lanes_name_the_byte_of_each_words_group():
    scales = np.random.default_rng().permutation(128).astype(np.uint8).reshape(16, 8)
    packed = layout.pack_scales(scales).view(np.uint8).reshape(layout.LANES, 4)
    for h in range(2):
        for g in range(8):
            loaded = packed[4 * g : 4 * g + 4].reshape(-1)
            expected = [scales[8 * h + g, word // 2] for word in range(ROW_WORDS)]
            for lanes in (4, 8, 16):
                steps = loaded.reshape(-1, lanes)
                assert [byte for step in steps for byte in step[scale_lanes(h, lanes)]] == expected


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_horizontal_sum(lanes):
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        source = T.match_buffer(T.arg("source", T.handle()), (lanes,), "float32")
        result = T.match_buffer(T.arg("result", T.handle()), (1,), "float32")
        T.buffer_store(result, horizontal_sum(T.Bind(source[T.ramp(0, 1, lanes)])), [0])
    out = tvm.runtime.tensor(np.full(1, np.nan, np.float32))
    data = 2.0 ** np.arange(lanes, dtype=np.float32)
    tvm.compile(builder.get(), target=cpu_kernels.host())["main"](tvm.runtime.tensor(data), out)
    assert out.numpy()[0] == 2.0**lanes - 1


@pytest.mark.parametrize(
    ("rule", "m_range", "M"), [(CPUGemv(), MRange(5, 8), 5), (CPUGemm(), MRange(), 17)], ids=["gemv", "gemm"]
)
def test_reads_and_writes_stay_inside(rule, m_range, M):
    """NaN around the activations must not enter, and numbers around the output must stay."""
    N, K = 24, 144
    rng = np.random.default_rng()
    weight = cpu_kernels.random_weight(rng, N, K, (1.0, 2.0))
    kernel = cpu_kernels.compiled(rule, MatmulProblem(N, K, m_range, "float32", "float32"))
    x = aligned((GUARD + M + GUARD, K), np.nan)
    x[GUARD : GUARD + M] = cpu_kernels.random_activations(rng, M, K, "float32")
    out = aligned((GUARD + M + GUARD, N), 7)
    packed = map(tvm.runtime.tensor, (weight.words, weight.scales, weight.global_scale))
    x_inside, out_inside = (tvm.runtime.from_dlpack(a[GUARD : GUARD + M]) for a in (x, out))
    kernel(x_inside, *packed, out_inside)
    assert (out[:GUARD] == 7).all() and (out[GUARD + M :] == 7).all()
    expected = x[GUARD : GUARD + M].astype(np.float64) @ cpu_kernels.exact(weight).T
    expected *= weight.global_scale[:N]
    assert np.linalg.norm(out[GUARD : GUARD + M] - expected) <= 2e-6 * np.linalg.norm(expected)
