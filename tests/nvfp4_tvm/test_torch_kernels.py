"""The packed linear layer on CPU and GPU; the kernels' own numbers are tested in tests/schedules."""

import threading

import numpy as np
import pytest
import torch

from nvfp4_tvm import numerics, torch_kernels
from nvfp4_tvm.errors import NVFP4Error, ShapeError, TargetError
from nvfp4_tvm.torch import PackedWeight, interleave, linear, pack
from nvfp4_tvm.torch_kernels import Variant

# The tests share compiled kernels.
pytestmark = pytest.mark.xdist_group("torch_kernels")

CUDA = torch.cuda.is_available()
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not CUDA, reason="needs an NVIDIA GPU")]),
]
on_gpu = DEVICES[1].marks

#: Of one rounding (rms), with what few elements may deviate.
ROUNDING = {torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}


class Weight:
    """A random weight, packed, and its exact values."""

    def __init__(self, N: int, K: int, device: str, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        codes = rng.integers(0, 256, (N, K // 2), np.uint8)
        scales = rng.integers(0, 0x7F, (N, K // 16), np.uint8)
        rows = rng.uniform(1e-5, 1e-4, N).astype(np.float32)
        self.canonical = [torch.tensor(array, device=device) for array in (codes, scales, rows)]
        self.packed = pack(*self.canonical)
        exact = numerics.dequantize(codes, scales, 1.0) * rows[:, None].astype(np.float64)
        self.exact = torch.tensor(exact, device=device)


def assert_close(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert got.shape == expected.shape and got.isfinite().all()
    error = (got.double() - expected).norm() / expected.norm()
    assert error < ROUNDING[got.dtype], float(error)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", list(ROUNDING), ids=str)
@pytest.mark.parametrize("shape", [(1,), (3,), (17,), (2, 3), (2, 1, 5), ()], ids=str)
def test_agrees_with_float64(device, dtype, shape):
    weight = Weight(24, 48, device)
    x = torch.randn(*shape, 48, device=device).to(dtype)
    got = linear(x, weight.packed)
    assert got.dtype == dtype and got.device == x.device and not got.requires_grad
    assert_close(got, x.double() @ weight.exact.T)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", list(ROUNDING), ids=str)
@pytest.mark.parametrize(("activation", "residual"), [(None, True), ("silu_mul", False), ("silu_mul", True)])
@pytest.mark.parametrize("bias", [False, True])
def test_epilogues(device, dtype, activation, bias, residual):
    weight = Weight(32, 48, device)
    x = torch.randn(5, 48, device=device).to(dtype)
    b = torch.randn(32, device=device).to(dtype) if bias else None
    expected = x.double() @ weight.exact.T + (0 if b is None else b.double())
    if activation is not None:
        gate, up = expected.view(5, 2, 2, 8).unbind(2)
        expected = (torch.nn.functional.silu(gate) * up).flatten(1)
    r = torch.randn(expected.shape, device=device).to(dtype) if residual else None
    expected = expected if r is None else expected + r.double()
    got = linear(x, weight.packed, bias=b, residual=r, activation=activation)
    assert_close(got, expected)


@pytest.mark.parametrize("device", DEVICES)
def test_bias_and_out(device):
    weight = Weight(24, 48, device)
    x = torch.randn(5, 48, device=device).half()
    b = torch.randn(24, device=device).half()
    expected = x.double() @ weight.exact.T + b.double()
    for dtype in ROUNDING:
        out = torch.full((5, 24), torch.nan, dtype=dtype, device=device)
        assert linear(x, weight.packed, bias=b, out=out) is out
        assert_close(out, expected)


def test_gate_and_up_layers():
    gate, up = Weight(16, 32, "cpu", 1), Weight(16, 32, "cpu", 2)
    packed = pack(*map(interleave, gate.canonical, up.canonical))
    x = torch.randn(3, 32)
    a, b = (x.double() @ weight.exact.T for weight in (gate, up))
    assert_close(linear(x, packed, activation="silu_mul"), torch.nn.functional.silu(a) * b)


@pytest.mark.parametrize("device", DEVICES)
def test_inputs_as_users_have_them(device):
    weight = Weight(24, 48, device)
    wide = torch.randn(5, 3 + 48 + 4, device=device)
    for x in (
        wide[:, 3:-4],
        torch.randn(48, 5, device=device).T,
        torch.randn(1 + 5 * 48, device=device)[1:].view(5, 48),  # contiguous and not aligned
        torch.randn(1, 48, device=device).expand(5, 48),
        torch.randn(48, device=device)[None].as_strided((1, 48), (7, 1)),
    ):
        assert_close(linear(x, weight.packed), x.double() @ weight.exact.T)
    for shape in ((0,), (0, 3), (2, 0)):
        assert linear(torch.zeros(*shape, 48, device=device), weight.packed).shape == (*shape, 24)
    with torch.inference_mode():
        x = torch.randn(2, 48, device=device)
        assert_close(linear(x, weight.packed), x.double() @ weight.exact.T)


def test_wrong_operands_are_named():
    packed = Weight(16, 48, "cpu").packed
    x, good = torch.zeros(2, 48), {"bias": torch.zeros(16), "residual": torch.zeros(2, 16)}
    linear(x, packed, **good)
    for operands, message in [
        (
            {"x": x.double()},
            r"linear \[16, 48\]: x is float64\[2, 48\], expected float32, float16, bfloat16; cast",
        ),
        ({"x": x[:, 16:]}, r"x is float32\[2, 32\], expected \[\.\.\., 48\]"),
        ({"x": torch.tensor(1.0)}, r"x is float32\[\], expected"),
        ({"x": x.to("meta")}, "x is on meta, expected cpu, as the weight"),
        ({"bias": torch.zeros(15)}, r"bias is float32\[15\] on cpu, expected float32\[16\] on cpu"),
        ({"bias": torch.zeros(16).half()}, r"bias is float16\[16\] on cpu, expected float32\[16\]"),
        ({"residual": torch.zeros(16)}, r"residual is float32\[16\] on cpu, expected float32\[2, 16\]"),
        ({"residual": torch.zeros(2, 16, device="meta")}, r"residual is .* on meta, expected"),
        ({"activation": "gelu", "residual": None}, "activation is 'gelu', expected one of None, 'silu_mul'"),
        ({"out": torch.zeros(2, 15)}, r"out is float32\[2, 15\] .*, expected \[2, 16\], contiguous"),
        ({"out": torch.zeros(16, 2).T}, r"out is float32\[2, 16\] with strides \[1, 2\]"),
        ({"out": torch.zeros(33)[1:].view(2, 16)}, "at a multiple of 16"),
        (
            {"out": torch.zeros(2, 16, dtype=torch.int32), "residual": None},
            "the output is torch.int32, expected",
        ),
    ]:
        with pytest.raises(ShapeError, match=message) as caught:
            linear(**{"x": x, "weight": packed, **good, **operands})
        assert "\n" not in str(caught.value)
    with pytest.raises(ShapeError, match="needs whole tiles of 16"):
        linear(x, Weight(24, 48, "cpu").packed, activation="silu_mul")
    odd = (
        torch.empty(packed.words.numel() + 1, dtype=torch.int32)[1:]
        .view(torch.uint32)
        .view(packed.words.shape)
    )
    with pytest.raises(ShapeError, match=r"words of the weight lie at .*, expected a multiple of 16; clone"):
        linear(x, PackedWeight(16, 48, odd, packed.scales, packed.global_scale))
    with pytest.raises(TargetError, match=r"found a weight on meta, expected cuda or cpu"):
        torch_kernels.find_kernel(packed.to("meta"), Variant(x.dtype, x.dtype, False, False, None))


def test_a_kernel_is_built_once_for_all_threads_and_weights(monkeypatch):
    built = []
    build = torch_kernels._build_cpu

    def counted(problem):
        built.append(problem)
        return build(problem)

    monkeypatch.setattr(torch_kernels, "_build_cpu", counted)
    monkeypatch.setattr(torch_kernels, "_kernels", {})
    weights = [Weight(16, 32, "cpu", seed) for seed in range(4)]
    x, results = torch.randn(3, 32), {}
    threads = [
        threading.Thread(target=lambda i=i: results.update({i: linear(x, weights[i].packed)}))
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    for i, weight in enumerate(weights):
        assert_close(results[i], x.double() @ weight.exact.T)


# ----------------------------------------------------------------------------------------
# On a GPU


def gpu(test):
    for mark in on_gpu:
        test = mark(test)
    return test


@gpu
def test_runs_on_the_current_stream():
    weight = Weight(64, 256, "cuda")
    x = torch.zeros(4, 256, device="cuda", dtype=torch.bfloat16)
    linear(x, weight.packed)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        x.normal_()  # after the sleep: a kernel on another stream would see zeros
        got = linear(x, weight.packed)
        early = stream.query()
    assert not early
    torch.cuda.current_stream().wait_stream(stream)
    assert_close(got, x.double() @ weight.exact.T)


@gpu
def test_graph_capture():
    weight = Weight(64, 256, "cuda")
    xs = {M: torch.randn(M, 256, device="cuda", dtype=torch.bfloat16) for M in (1, 8, 16, 17, 48, 100, 300)}
    # One call loads the kernels for every M
    linear(xs[1], weight.packed)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outs = {M: linear(x, weight.packed) for M, x in xs.items()}
    for _ in range(3):
        for M, x in xs.items():
            x.normal_()
            outs[M].fill_(torch.nan)
        graph.replay()
        for M, x in xs.items():
            assert_close(outs[M], x.double() @ weight.exact.T)


@gpu
def test_first_call_inside_a_capture_is_refused():
    weight = Weight(96, 80, "cuda")
    x = torch.randn(2, 80, device="cuda", dtype=torch.bfloat16)
    for call in (lambda: linear(x, weight.packed), lambda: linear(x, *weight.canonical)):
        with (
            pytest.raises(NVFP4Error, match="call the layer once before capturing"),
            torch.cuda.graph(torch.cuda.CUDAGraph()),
        ):
            call()
    torch.cuda.synchronize()
    assert_close(linear(x, weight.packed), x.double() @ weight.exact.T)


@gpu
def test_reproducible_and_no_row_leaks_into_another():
    weight = Weight(100, 2880, "cuda")
    for M in (1, 7, 16, 33, 128, 300):
        x = torch.randn(M, 2880, device="cuda", dtype=torch.bfloat16)
        first = linear(x, weight.packed)
        assert all(torch.equal(linear(x, weight.packed), first) for _ in range(5))
        padded = torch.full((M + 2, 2880), torch.nan, device="cuda", dtype=torch.bfloat16)
        padded[1 : M + 1] = x
        assert torch.equal(linear(padded[1 : M + 1], weight.packed), first)
