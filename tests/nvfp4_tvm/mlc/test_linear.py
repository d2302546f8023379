"""Packed layers compute what their exactly dequantized weights do."""

import ml_dtypes
import numpy as np
import pytest

from nvfp4_tvm import layout, numerics

DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def packed(N, K, seed=0):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256, (N, K // 2), np.uint8)
    scales = rng.integers(0x20, 0x50, (N, K // 16), np.uint8)
    global_scale = rng.uniform(0.01, 0.02, N).astype(np.float32)
    dense = np.stack(
        [numerics.dequantize(codes[n : n + 1], scales[n : n + 1], global_scale[n])[0] for n in range(N)]
    )
    return layout.pack(codes, scales, global_scale), dense


def run(module, methods, parameters):
    """Compile methods of a module for the CPU by TVM's default pipeline, and return the virtual machine."""
    import tvm
    from tvm import relax

    mod, _ = module.export_tvm(methods)
    library = tvm.compile(mod, target="llvm")
    machine = relax.VirtualMachine(library, tvm.cpu())
    values = [tvm.runtime.tensor(value) for value in parameters]
    return lambda name, x: machine[name](tvm.runtime.tensor(x), *values).numpy()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("bias", "out_dtype"), [(False, None), (True, None), (False, "float32"), (True, "float32")]
)
def test_linear(dtype, bias, out_dtype):
    from tvm.relax.frontend import nn

    from nvfp4_tvm.mlc.linear import NVFP4Linear

    N, K = 40, 80
    old = nn.Linear(K, N, bias=bias, dtype=dtype, out_dtype=out_dtype)
    new = NVFP4Linear.from_module(old, "layer", (N, K), dtype, 1)
    assert [p.dtype for p in new.packed().values()] == ["uint32", "uint32", "float32"]
    new.to(dtype)
    weight, dense = packed(N, K)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((3, 2, K)).astype(DTYPES[dtype])
    parameters = [weight.words, weight.scales, weight.global_scale]
    want = x.astype(np.float64) @ dense.T
    if bias:
        parameters.append(rng.standard_normal(N).astype(out_dtype or DTYPES[dtype]))
        assert new.bias.dtype == (out_dtype or dtype)
        want += parameters[-1].astype(np.float64)
    got = run(new, {"forward": {"x": nn.spec.Tensor([3, 2, K], dtype)}}, parameters)("forward", x)
    assert got.shape == (3, 2, N) and str(got.dtype) == (out_dtype or dtype)
    tolerance = {"bfloat16": 2**-8, "float16": 2**-10, "float32": 1e-5}[out_dtype or dtype]
    np.testing.assert_allclose(got.astype(np.float64), want, rtol=tolerance, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("dtype", DTYPES)
def test_embedding_and_the_head_tied_to_it(dtype):
    from tvm.relax.frontend import nn

    from nvfp4_tvm.mlc.linear import NVFP4Embedding

    N, K = 56, 144
    new = NVFP4Embedding.from_module(nn.Embedding(N, K), "embed", (N, K), dtype, 1)
    weight, dense = packed(N, K)
    ids = np.array([[0, 55, 7], [7, 1, 2]], np.int32)
    x = np.random.default_rng(1).standard_normal((1, 2, K)).astype(DTYPES[dtype])
    methods = {
        "forward": {"ids": nn.spec.Tensor([2, 3], "int32")},
        "lm_head_forward": {"x": nn.spec.Tensor([1, 2, K], dtype)},
    }
    call = run(new, methods, [weight.words, weight.scales, weight.global_scale])
    np.testing.assert_array_equal(call("forward", ids), dense.astype(DTYPES[dtype])[ids])
    logits, want = call("lm_head_forward", x), x.astype(np.float64) @ dense.T
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


def test_a_bias_that_tensor_parallel_divides(mlc_llm):
    from tvm.relax.frontend import nn

    from nvfp4_tvm.mlc.linear import NVFP4Linear

    new = NVFP4Linear.from_module(nn.Linear(128, 16, dtype="float16"), "layer", (16, 128), "float16", 2)

    class Halved(nn.Module):
        def __init__(self):
            self.linear = new

        def forward(self, x):
            bias, self.linear.bias = self.linear.bias, self.linear.bias / 2
            y = self.linear(x)
            self.linear.bias = bias
            return y

    weight, _ = packed(16, 128)
    bias = np.arange(16, dtype=np.float16)
    x = np.zeros((1, 128), np.float16)
    call = run(
        Halved(),
        {"forward": {"x": nn.spec.Tensor([1, 128], "float16")}},
        [weight.words, weight.scales, weight.global_scale, bias],
    )
    np.testing.assert_array_equal(call("forward", x), (bias / 2)[None])
