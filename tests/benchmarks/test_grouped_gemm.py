import sys

import benchmark_modules  # noqa: F401
import numpy as np
import pytest
import torch

from benchmarks import grouped_gemm
from benchmarks.grouped_gemm import MODELS, Layer, Weights, baselines, relative_error, routings
from nvfp4_tvm.schedules.base import MRange

LAYER = Layer("tiny", "down", experts=5, top=2, N=64, K=48, shared_x=False)


def rng():
    return np.random.default_rng(0)


def test_the_models_layers_are_problems():
    problems = [layer.problem(tokens) for layers in MODELS.values() for layer in layers for tokens in (1, 9)]
    assert len(set(problems)) == len(problems) == 8
    one, more = LAYER.problem(1), LAYER.problem(4)
    assert one.selected and one.M == MRange(2, 2) and not more.selected and more.M == MRange()


def test_tokens_pick_experts_without_repetition():
    for routing in routings(LAYER, 100, 3, rng(), "cpu"):
        assert len(routing.experts) == 200 and (np.diff(routing.experts) >= 0).all()
        counts = np.bincount(routing.experts, minlength=5)
        assert counts.max() <= 100
        assert routing.indptr.tolist() == [0, *np.cumsum(counts)]
        assert routing.offsets.tolist() == np.cumsum(counts).tolist()


def test_one_tokens_experts_are_others_each_time():
    first, second = routings(LAYER, 1, 2, rng(), "cpu")
    assert first.indptr.shape == (1, 2) and first.indptr[0].tolist() == first.experts.tolist()
    assert not set(first.experts) & set(second.experts)


@pytest.mark.parametrize("tokens", [1, 7])
def test_errors_are_seen(tokens):
    torch.manual_seed(0)
    weights, (routing,) = Weights(LAYER, "cpu"), routings(LAYER, tokens, 1, rng(), "cpu")
    x = torch.randn(2 * tokens, 48).bfloat16()
    exact = {e: torch.from_numpy(weights.exact(e, range(4))) for e in set(routing.experts.tolist())}
    out = torch.stack([exact[e] @ row.double() for e, row in zip(routing.experts.tolist(), x, strict=True)])
    assert relative_error(weights, routing, x, out, rng()) < 1e-12
    assert 1e-4 < relative_error(weights, routing, x, out.bfloat16(), rng()) < grouped_gemm.ERROR
    assert relative_error(weights, routing, x, out * 1.01, rng()) == pytest.approx(0.01)


def test_the_loop_multiplies_each_row_by_its_expert():
    torch.manual_seed(0)
    weights, (routing,) = Weights(LAYER, "cpu"), routings(LAYER, 7, 1, rng(), "cpu")
    x = torch.randn(14, 48).bfloat16()
    out = torch.full((14, 64), torch.nan).bfloat16()
    launches = dict(baselines(weights, x, out))
    launches["mm_loop_bf16"](routing)
    expected = torch.stack(
        [weights.plain[e].double() @ r.double() for e, r in zip(routing.experts, x, strict=True)]
    )
    assert (out.double() - expected).norm() / expected.norm() < 4e-3


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["grouped_gemm", "measure"])
    assert grouped_gemm.main() == 2 and "found none" in capsys.readouterr().err
