import numpy as np
import pytest
import tvm
from relax_modules import NUMPY, Weight, build_function, relative_error, tensor
from tvm import relax

from nvfp4_tvm import layout, numerics, op


def run(mod, *arrays):
    machine = relax.VirtualMachine(tvm.compile(mod, target="llvm"), tvm.cpu())
    return machine["main"](*map(tensor, arrays)).numpy()


@pytest.mark.parametrize(("N", "K"), [(1, 16), (24, 48), (17, 144)])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_dequantize_rounds_the_exact_value_once(N, K, dtype):
    weight = Weight.random(np.random.default_rng(N), N, K)
    weight.rows[:] = np.float32(2.0**-7)  # a power of two: the product in float32 is exact
    params = weight.params()
    found = run(
        build_function(params, lambda b: b.emit(op.dequantize(*params, dtype))).get(), *weight.arrays()
    )
    assert found.dtype == NUMPY[dtype]
    np.testing.assert_array_equal(found, weight.exact().astype(np.float32).astype(NUMPY[dtype]))


def test_every_code_and_scale():
    # 16 codes in each group, one group for each of the 127 finite non-negative scale bytes and their negatives
    bytes_ = np.array([b for b in range(256) if b & 0x7F != 0x7F], np.uint8)
    codes = numerics.pack_codes(np.tile(np.arange(16, dtype=np.uint8), (len(bytes_), 1)))
    weight = Weight(codes, bytes_[:, None], np.ones(1, np.float32))
    params = weight.params()
    found = run(build_function(params, lambda b: b.emit(op.dequantize(*params))).get(), *weight.arrays())
    expected = (
        numerics.decode_e2m1(np.arange(16, dtype=np.uint8))[None] * numerics.decode_e4m3(bytes_)[:, None]
    )
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("N", "K"), [(1, 16), (24, 48), (100, 2880)])
def test_packed_equals_canonical(N, K):
    weight = Weight.random(np.random.default_rng(N), N, K)
    packed = layout.pack(*weight.arrays())
    arrays = (packed.words, packed.scales, packed.global_scale)
    inputs = [relax.Var(f"p{i}", relax.TensorType(a.shape, str(a.dtype))) for i, a in enumerate(arrays)]
    mod = build_function(
        inputs, lambda b: b.emit(op.dequantize_packed(*inputs, N=N, K=K, out_dtype="float32"))
    ).get()
    assert relative_error(run(mod, *arrays), weight.exact()) < 1e-7
