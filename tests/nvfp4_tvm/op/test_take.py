import numpy as np
import tvm
from relax_modules import Weight, build_function, symbolic, tensor
from tvm import relax

from nvfp4_tvm import layout, op


def test_take_gathers_rows():
    rng = np.random.default_rng(0)
    weight = Weight.random(rng, 50, 144)
    packed = layout.pack(*weight.arrays())
    arrays = (packed.words, packed.scales, packed.global_scale)
    inputs = [relax.Var(f"p{i}", relax.TensorType(a.shape, str(a.dtype))) for i, a in enumerate(arrays)]
    ids = relax.Var("ids", relax.TensorType((1, symbolic()), "int32"))
    mod = build_function(
        [*inputs, ids], lambda b: b.emit(op.take(*inputs, ids, N=50, K=144, out_dtype="float32"))
    ).get()
    machine = relax.VirtualMachine(tvm.compile(mod, target="llvm"), tvm.cpu())
    chosen = np.array([[49, 0, 17, 17, 32]], np.int32)
    found = machine["main"](*map(tensor, (*arrays, chosen))).numpy()
    np.testing.assert_allclose(found, weight.exact()[chosen], rtol=1e-6)
    outside = np.array([[-1, 50, 10**6, 3, -(10**6)]], np.int32)
    found = machine["main"](*map(tensor, (*arrays, outside))).numpy()
    np.testing.assert_allclose(found, weight.exact()[[[0, 49, 49, 3, 0]]], rtol=1e-6)
