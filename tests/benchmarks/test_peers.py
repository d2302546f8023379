import importlib.util

import benchmark_modules  # noqa: F401
import numpy as np
import pytest
import torch

from benchmarks import peers
from nvfp4_tvm import numerics


@pytest.fixture
def weight():
    rng = np.random.default_rng(0)
    codes, scales = rng.integers(0, 256, (48, 32), np.uint8), rng.integers(0, 0x7F, (48, 4), np.uint8)
    exact = numerics.dequantize(codes, scales, np.float32(0.25), np.float64)
    return torch.from_numpy(codes), torch.from_numpy(scales).view(torch.float8_e4m3fn), 0.25, exact


def test_dequantizing_is_exact(weight):
    *given, exact = weight
    np.testing.assert_array_equal(peers.dequantize(*given).numpy(), exact)


@pytest.mark.parametrize("contender", [peers.CuBLAS(), peers.Dequantize()], ids=lambda one: one.name)
def test_products_of_what_torch_has(contender, weight):
    *given, exact = weight
    a, out = torch.randn(5, 64).bfloat16(), torch.full((5, 48), torch.nan).bfloat16()
    contender.run(a, contender.prepare(*given), out)
    expected = a.double() @ torch.from_numpy(exact).T
    assert (out - expected).norm() / expected.norm() < 5e-3


def test_what_is_installed_is_measured_and_nothing_else(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    ours = ["cublas_bf16", "dequantize_mm"]
    assert [one.name for one in peers.installed()][-2:] == ours
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "humming")
    monkeypatch.setattr(peers, "Marlin", lambda library: type("", (), {"name": library}))
    assert [one.name for one in peers.installed("lib.so")][-4:] == [*ours, "lib.so", "humming"]
