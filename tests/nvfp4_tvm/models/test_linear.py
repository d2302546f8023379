import numpy as np
import pytest
import tvm
from tvm.relax.frontend import nn

from nvfp4_tvm import numerics
from nvfp4_tvm.errors import ShapeError
from nvfp4_tvm.models.linear import embedding, fused, linear
from nvfp4_tvm.models.structure import LinearSpec

RNG = np.random.default_rng(0)


class Both(nn.Module):
    """One plain and one NVFP4 layer with biases, side by side, and an embedding from the second's weight."""

    def __init__(self, dtype, N, K):
        super().__init__()
        self.a = linear(LinearSpec("a", (("a", N),), K, bias=True), dtype)
        self.b = linear(LinearSpec("b", (("b", N),), K, bias=True, quantized=True), dtype)
        self.table = embedding(LinearSpec("t", (("t", N),), K, quantized=True), dtype)

    def both(self, x):
        return fused([self.a, self.b], x)

    def head(self, x):
        return self.b(x, "float32")

    def look_up(self, ids):
        return self.table(ids)


def run(dtype, N, K, M):
    module = Both(dtype, N, K)
    arguments = {
        "both": {"x": nn.spec.Tensor(["m", K], dtype)},
        "head": {"x": nn.spec.Tensor(["m", K], dtype)},
        "look_up": {"ids": nn.spec.Tensor([1, "m"], "int32")},
    }
    plain = {"param_mode": "plain", "effect_mode": "none"}
    mod, named = module.export_tvm(
        spec={name: {**spec, "$": dict(plain)} for name, spec in arguments.items()}
    )
    params = {}
    for name, param in named:
        shape = [int(n) for n in param.shape]
        if name.endswith("codes"):
            value = RNG.integers(0, 256, shape).astype(np.uint8)
        elif name.endswith("scales"):
            value = RNG.integers(0, 0x7F, shape).astype(np.uint8)
        elif name.endswith("global_scale"):
            value = RNG.uniform(1e-4, 1e-3, shape).astype(np.float32)
        else:
            value = RNG.standard_normal(shape).astype(param.dtype)
        params[name] = value
    vm = tvm.relax.VirtualMachine(tvm.compile(mod, target="llvm"), tvm.cpu())
    weights = [tvm.runtime.tensor(value) for value in params.values()]
    x = RNG.standard_normal((M, K)).astype(dtype)
    ids = RNG.integers(0, N, (1, M)).astype(np.int32)
    inputs = (x, x, ids)
    results = [
        vm[name](tvm.runtime.tensor(value), *weights).numpy()
        for name, value in zip(arguments, inputs, strict=True)
    ]
    return params, x.astype(np.float64), ids, results


@pytest.mark.parametrize(("N", "K", "M"), [(33, 48, 3), (16, 128, 1)])
def test_float32(N, K, M):
    params, x, ids, (both, head, rows) = run("float32", N, K, M)
    b, table = (
        numerics.dequantize(params[f"{p}.codes"], params[f"{p}.scales"], 1.0)
        * params[f"{p}.global_scale"][:, None].astype(np.float64)
        for p in ("b", "table")
    )
    first = x @ params["a.weight"].astype(np.float64).T + params["a.bias"]
    second = x @ b.T + params["b.bias"]
    np.testing.assert_allclose(both, np.concatenate([first, second], -1), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(head, second, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(rows[0], table[ids[0]], rtol=1e-6)


def test_plain_16_bit_accumulates_in_float32():
    """2049 ones: a float16 sum stops at 2048."""
    module = linear(LinearSpec("a", (("a", 1),), 2052), "float16")
    plain = {"param_mode": "plain", "effect_mode": "none"}
    mod, _ = module.export_tvm(spec={"forward": {"x": nn.spec.Tensor([1, 2052], "float16"), "$": plain}})
    vm = tvm.relax.VirtualMachine(tvm.compile(mod, target="llvm"), tvm.cpu())
    ones = tvm.runtime.tensor(np.ones((1, 2052), np.float16))
    result = vm["forward"](ones, ones).numpy()
    assert result.dtype == np.float16 and result.item() == 2052


def test_impossible_weight_is_refused():
    with pytest.raises(ShapeError, match=r"model\.b: shape \[8, 24\] cannot be NVFP4"):
        linear(LinearSpec("model.b", (("b", 8),), 24, quantized=True), "float32")
