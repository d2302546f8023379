import sys

import benchmark_modules  # noqa: F401
import pytest
import torch

from benchmarks import gemm, peers


class Fake:
    """A contender on the CPU."""

    def __init__(self, name="fake", factor=1.0):
        self.name, self.factor = name, factor

    def prepare(self, packed, scale, global_scale):
        return peers.dequantize(packed, scale, global_scale).bfloat16()

    def run(self, a, weight, out):
        torch.mm(a, weight.T, out=out)
        out *= self.factor


@pytest.fixture
def operands(monkeypatch):
    monkeypatch.setattr(gemm, "time_launches", lambda launches, budget: [f() for f in launches] and 5.0)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    torch.manual_seed(0)
    packed = torch.randint(0, 256, (32, 24), dtype=torch.uint8)
    scale = (torch.rand(32, 3) * 200 + 16).to(torch.float8_e4m3fn)
    a = torch.randn(3, 48).bfloat16()
    exact = a.double() @ peers.dequantize(packed, scale, 0.5).double().T
    return packed, scale, a, exact


def test_figures_of_a_contender(operands):
    packed, scale, a, exact = operands
    fake, out = Fake(), torch.empty(3, 32).bfloat16()
    figures = gemm.measure(fake, [fake.prepare(packed, scale, 0.5)] * 2, a, out, exact)
    assert set(figures) == {"fake_us", "fake_warm_us", "fake_latency_us", "fake_err"}
    assert figures["fake_us"] == figures["fake_warm_us"] == 5.0 and figures["fake_err"] < 3e-3


def test_what_is_wrong_or_refuses_has_no_time(operands):
    packed, scale, a, exact = operands
    out = torch.empty(3, 32).bfloat16()
    wrong = Fake(factor=1.01)
    figures = gemm.measure(wrong, [wrong.prepare(packed, scale, 0.5)], a, out, exact)
    assert figures["fake_us"] is None and figures["fake_err"].startswith("wrong: relative error 0.0")
    figures = gemm.measure(wrong, ["no weight"], a, out, exact)
    assert figures["fake_us"] is None and "Error" in figures["fake_err"]


def test_a_contender_that_cannot_prepare_leaves_the_others(operands, monkeypatch):
    class Unable(Fake):
        def prepare(self, *_):
            raise PermissionError("its compiler")

    class Properties:
        L2_cache_size = 1

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
    for name in ("randint", "rand", "randn", "empty"):
        make = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *a, make=make, device=None, **k: make(*a, **k))
    (row,) = gemm.measure_shape(32, 48, [3], [Unable("unable"), Fake()], 1e12)
    assert row["unable_us"] is None and row["unable_err"] == "PermissionError: its compiler"
    assert row["fake_us"] == 5.0


def test_table_and_shares():
    row = {"shape": "32x48", "N": 32, "K": 48, "M": 3, "floor_us": 1.0, "nvfp4_tvm_us": 2.0, "b_us": None}
    row |= {"nvfp4_tvm_warm_us": 1.5, "nvfp4_tvm_latency_us": 9.0}
    row |= gemm.shares(row, bandwidth=1e9, flops=1e10)
    assert row["bandwidth_share"] == pytest.approx((32 * 48 * 9 / 16 + 2 * 3 * 80) / 2e-6 / 1e9, abs=1e-3)
    assert row["flops_share"] == pytest.approx(2 * 3 * 32 * 48 / 2e-6 / 1e10, abs=1e-3)
    text = gemm.table([row], ["nvfp4_tvm", "b"])
    assert "| 32x48, 3 | 1.0 | 2.0 / 1.5 / 9.0 | refused / refused / refused |" in text


def test_no_gpu_is_said(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gemm"])
    assert gemm.main() == 2 and "found none" in capsys.readouterr().err


def test_the_baselines_agree(operands):
    packed, scale, a, exact = operands
    for contender in (peers.CuBLAS(), peers.Dequantize()):
        out = torch.empty(3, 32).bfloat16()
        contender.run(a, contender.prepare(packed, scale, 0.5), out)
        assert (out.double() - exact).norm() / exact.norm() < 4e-3
