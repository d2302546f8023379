import numpy as np
import pytest
import tvm
from relax_modules import NUMPY, Weight

from nvfp4_tvm import layout
from nvfp4_tvm.codegen.dequantize import build_dequantize
from nvfp4_tvm.errors import ShapeError, TargetError
from nvfp4_tvm.target import resolve_target

SM89 = resolve_target("cuda:sm_89").target


def test_built_once():
    built = build_dequantize(24, 48, "float16", SM89)
    assert built is build_dequantize(24, 48, "float16", SM89)
    assert built.module.implements_function("nvfp4_dequantize_24x48_float16")
    (usage,) = built.log.usage.values()
    assert usage.spill_stores == usage.spill_loads == 0


@pytest.mark.parametrize(("N", "K", "dtype"), [(24, 40, "float16"), (24, 48, "int8")])
def test_refusals(N, K, dtype):
    with pytest.raises(ShapeError):
        build_dequantize(N, K, dtype, SM89)


def test_a_cpu_has_no_such_kernel():
    with pytest.raises(TargetError, match="has no kernel nvfp4_dequantize_24x48_float16"):
        build_dequantize(24, 48, "float16", resolve_target("llvm").target)


@pytest.mark.gpu
@pytest.mark.skipif(not tvm.cuda(0).exist, reason="needs an NVIDIA GPU")
@pytest.mark.parametrize(("N", "K"), [(1, 16), (24, 48), (100, 2880)])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_numbers_on_the_gpu(N, K, dtype):
    weight = Weight.random(np.random.default_rng(N), N, K)
    weight.rows[:] = np.float32(2.0**-7)  # a power of two: the product in float32 is exact
    packed = layout.pack(*weight.arrays())
    gpu = tvm.cuda(0)
    out = tvm.runtime.tensor(np.full((N, K), np.nan).astype(NUMPY[dtype]), gpu)
    arrays = [tvm.runtime.tensor(a, gpu) for a in (packed.words, packed.scales, packed.global_scale)]
    build_dequantize(N, K, dtype, resolve_target("auto").target).function(*arrays, out)
    np.testing.assert_array_equal(out.numpy(), weight.exact().astype(np.float32).astype(NUMPY[dtype]))
