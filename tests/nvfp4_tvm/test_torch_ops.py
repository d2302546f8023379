import gc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nvfp4_tvm import numerics, torch_kernels, torch_ops
from nvfp4_tvm.checkpoint.base import NVFP4Tensor
from nvfp4_tvm.errors import NVFP4Error, ShapeError
from nvfp4_tvm.torch import Linear, PackedWeight, decode, linear, pack
from nvfp4_tvm.torch_ops import canonical_linear, packed_linear

# The tests share compiled kernels.
pytestmark = pytest.mark.xdist_group("torch_kernels")

#: Of one rounding (rms), see cpu_kernels.ROUNDING, with what few elements may deviate.
ROUNDING = {torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}


def random_tensor(rng: np.random.Generator, N: int, K: int) -> NVFP4Tensor:
    codes = rng.integers(0, 256, (N, K // 2), np.uint8)
    scales = rng.integers(0, 0x7F, (N, K // 16), np.uint8)
    return NVFP4Tensor("w", codes, scales, np.float32(rng.uniform(1e-5, 1e-4)))


def random_linear(N: int, K: int, bias: bool = False) -> Linear:
    rng = np.random.default_rng(0)
    return Linear.from_tensor(
        random_tensor(rng, N, K), torch.tensor(rng.standard_normal(N)).float() if bias else None
    )


@settings(deadline=None, max_examples=25)
@given(
    N=st.integers(1, 40),
    groups=st.integers(1, 20),
    leading=st.lists(st.integers(0, 3), max_size=2),
    dtype=st.sampled_from(list(ROUNDING)),
    bias=st.booleans(),
    per_row=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_eager_agrees_with_float64(N, groups, leading, dtype, bias, per_row, seed):
    rng, K = np.random.default_rng(seed), 16 * groups
    tensor = random_tensor(rng, N, K)
    gs = rng.uniform(1e-5, 1e-4, N if per_row else 1).astype(np.float32)
    x = torch.tensor(rng.standard_normal((*leading, K))).to(dtype)
    b = torch.tensor(rng.standard_normal(N)).to(dtype) if bias else None
    got = linear(x, torch.tensor(tensor.codes), torch.tensor(tensor.scales), torch.tensor(gs), b)
    assert got.dtype == dtype and got.shape == (*leading, N)
    exact = numerics.dequantize(tensor.codes, tensor.scales, 1.0) * gs[:, None].astype(np.float64)
    expected = x.double().numpy() @ exact.T + (0 if b is None else b.double().numpy())
    # Cancellation: against the size of the sums' terms
    size = np.linalg.norm(
        np.abs(x.double().numpy()) @ np.abs(exact).T + (0 if b is None else b.double().abs().numpy())
    )
    error = np.linalg.norm(got.double().numpy() - expected)
    assert error <= 2e-6 * size + ROUNDING[dtype] * np.linalg.norm(expected)


def test_decode_is_exact_for_every_code_and_scale():
    codes = np.tile(np.arange(256, dtype=np.uint8), (127, 1))
    scales = np.repeat(np.arange(127, dtype=np.uint8)[:, None], 32, axis=1)
    got = decode(torch.tensor(codes), torch.tensor(scales)).numpy()
    assert np.array_equal(got.astype(np.float64), numerics.dequantize(codes, scales, 1.0))


def test_operators_pass_pytorchs_own_checks():
    layer = random_linear(16, 32, bias=True)
    x, bias = torch.randn(2, 3, 32), layer.bias.detach()
    for arguments in ((bias,), ()):
        torch.library.opcheck(
            canonical_linear, (x, layer.codes, layer.scales, layer.global_scale, *arguments)
        )
    packed = pack(layer.codes, layer.scales, layer.global_scale)
    operands = (x, packed.words, packed.scales, packed.global_scale, 16, 32)
    torch.library.opcheck(packed_linear, (*operands, bias, torch.randn(2, 3, 16)))
    torch.library.opcheck(packed_linear, operands, {"activation": "silu_mul", "out_dtype": torch.float16})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"x": torch.zeros(2, 32, dtype=torch.float64)},
            r"x is float64\[2, 32\], expected float32 or float16",
        ),
        ({"x": torch.zeros(2, 16)}, r"x is float32\[2, 16\], expected \[..., 32\]"),
        ({"x": torch.tensor(1.0)}, r"x is float32\[\], expected \[..., 32\]"),
        ({"codes": torch.zeros(8, 16, dtype=torch.int8)}, r"codes are int8\[8, 16\], expected uint8"),
        ({"codes": torch.zeros(8, 12, dtype=torch.uint8)}, "codes.*multiple of 16"),
        (
            {"scales": torch.zeros(8, 4, dtype=torch.uint8)},
            r"scales are uint8\[8, 4\], expected uint8 \[8, 2\]",
        ),
        ({"global_scale": torch.ones(3)}, r"global_scale is float32\[3\], expected float32 \[1\] or \[8\]"),
        ({"bias": torch.zeros(7)}, r"bias is float32\[7\], expected float32 \[8\]"),
        ({"bias": torch.zeros(8).half()}, r"bias is float16\[8\], expected float32 \[8\]"),
    ],
)
def test_wrong_operands_are_named(changes, message):
    operands = {
        "x": torch.zeros(2, 32),
        "codes": torch.zeros(8, 16, dtype=torch.uint8),
        "scales": torch.zeros(8, 2, dtype=torch.uint8),
        "global_scale": torch.ones(1),
        "bias": torch.zeros(8),
    }
    linear(**operands)
    with pytest.raises(ShapeError, match=message):
        linear(**{**operands, **changes})


def test_what_a_canonical_weight_does_not_take_is_refused():
    layer = random_linear(16, 32)
    x, weight = torch.randn(2, 32), (layer.codes, layer.scales, layer.global_scale)
    for more in ({"residual": x[:, :16]}, {"activation": "silu_mul"}, {"out": x[:, :16]}):
        with pytest.raises(NVFP4Error, match=r"expected a packed one; pack it with nvfp4_tvm\.torch\.pack"):
            linear(x, *weight, **more)
    for missing in ((), weight[:1], weight[:2]):
        with pytest.raises(ShapeError, match="found no PackedWeight"):
            linear(x, *missing)


class Packed(nn.Module):
    """A layer and its packed form, as a user may have them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = random_linear(16, 32, bias=True)
        self.packed = pack(*self.layer.buffers())

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        packed = linear(torch.relu(x), self.packed, bias=self.layer.bias, residual=2 * x[..., :16])
        return self.layer(torch.relu(x)) + 2 * x[..., :16], packed + 0


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_without_a_graph_break(backend):
    model = Packed()
    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=True)
    for M in (2, 5):
        x = torch.randn(M, 32)
        for got, same in zip(compiled(x), model(x), strict=True):
            torch.testing.assert_close(got, same)
    torch.testing.assert_close(*model(x))


def test_exports():
    x = torch.randn(3, 32)
    program = torch.export.export(Packed(), (x,), dynamic_shapes=({0: torch.export.Dim("M")},))
    called = [str(node.target) for node in program.graph.nodes if "nvfp4_tvm" in str(node.target)]
    assert called == ["nvfp4_tvm.packed_linear.default", "nvfp4_tvm.linear.default"]
    x = torch.randn(7, 32)
    torch.testing.assert_close(*program.module()(x))


def test_out_while_compiling():
    packed, x = pack(*random_linear(16, 32).buffers()), torch.randn(3, 32)

    @torch.compile(backend="eager", fullgraph=True)
    def function(x, out):
        return linear(x, packed, out=out)

    out = torch.full((3, 16), torch.nan, dtype=torch.float16)
    assert function(x, out) is out and torch.equal(out, linear(x, packed, out=torch.empty_like(out)))


def test_gradients_are_refused():
    layer = random_linear(16, 32)
    packed = pack(*layer.buffers())
    for call in (lambda x: layer(x), lambda x: linear(x, packed)):
        out = call(torch.randn(2, 32, requires_grad=True))
        with pytest.raises(RuntimeError, match="no autograd formula was registered"):
            out.sum().backward()


def test_the_packed_form_follows_the_canonical_one(monkeypatch):
    layer = random_linear(16, 32)
    weight = (layer.codes, layer.scales, layer.global_scale)
    first = torch_ops.packed_form(*weight)
    assert torch_ops.packed_form(*weight) is first
    for change in (
        lambda: layer.codes.bitwise_xor_(1),
        lambda: layer.scales.add_(1),
        lambda: layer.global_scale.mul_(2),
        lambda: layer.load_state_dict(random_linear(16, 32).state_dict()),
    ):
        change()
        now = torch_ops.packed_form(*weight)
        assert now is not first and torch_ops.packed_form(*weight) is now
        fresh = pack(*weight)
        for field in ("words", "scales", "global_scale"):
            assert torch.equal(getattr(now, field), getattr(fresh, field))
        first = now
    with torch.inference_mode():
        inference = [tensor.clone() for tensor in weight]
    assert torch_ops.packed_form(*inference) is torch_ops.packed_form(*inference)


def test_the_packed_form_goes_with_the_canonical_one():
    weight = [tensor.clone() for tensor in random_linear(16, 32).buffers()]
    torch_ops.packed_form(*weight)
    before = len(torch_ops._packed)
    weight.clear()
    gc.collect()
    assert len(torch_ops._packed) == before - 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", list(ROUNDING), ids=str)
def test_layers_run_the_kernels_on_a_gpu(dtype):
    layer = random_linear(100, 48, bias=True).to(dtype)
    x = torch.randn(5, 48, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = layer(x).double()
    names = list(layer.state_dict())
    layer.cuda()
    torch_ops._packed.clear()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for call in (layer, compiled):
        got = call(x.cuda()).cpu().double()
        assert (got - expected).norm() / expected.norm() < ROUNDING[dtype]
    (entry,) = torch_ops._packed.values()
    assert isinstance(entry.packed, PackedWeight) and entry.packed.kernels
    assert all(isinstance(kernel, torch_kernels.CUDAKernel) for kernel in entry.packed.kernels.values())
    assert list(layer.state_dict()) == names  # the packed form is no part of it


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_without_kernels_decodes_and_says_so(monkeypatch, caplog):
    layer = random_linear(16, 32).cuda()
    x = torch.randn(2, 32, device="cuda")
    expected = layer(x)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (12, 0))
    torch_ops._has_kernels.cache_clear()
    try:
        for _ in range(2):
            torch.testing.assert_close(layer(x), expected)
    finally:
        torch_ops._has_kernels.cache_clear()
    (record,) = caplog.records
    assert "decodes whole weights on cuda:0, which is slow" in record.message
