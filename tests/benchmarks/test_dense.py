import sys

import benchmark_modules  # noqa: F401
import pytest
import torch
from dense_reference import assert_right

from benchmarks import dense
from nvfp4_tvm.schedules.dense_problem import DenseProblem
from nvfp4_tvm.target import resolve_target

TARGET = resolve_target("cuda:sm_90").target


def test_configurations_have_enough_tokens():
    for M, tokens in ((1, 8), (8, 8), (9, 16), (17, 32), (64, 64), (2048, 64)):
        configs = list(dense.configurations(4096, M))
        assert len(set(configs)) == len(configs) > 20
        assert {config.tokens for config in configs} == {tokens}
    assert {config.KS for config in dense.configurations(128, 1)} == {2}  # two steps of 64


def test_contenders():
    problem = DenseProblem(64, 64, "float16", "float16")
    found = dense.contenders(problem, TARGET, 1, sweep=False)
    assert list(found) == ["nvfp4_tvm", "cublas"]
    x, weight, out = (torch.randn(shape).half() for shape in ((3, 64), (5, 64), (3, 5)))
    found["cublas"](x, weight, out)
    assert_right(out.numpy(), x.numpy(), weight.numpy(), "float16")


def test_the_best_of_a_sweep():
    row = {
        "N": 64,
        "K": 32,
        "M": 2,
        "floor_us": 1.0,
        "cublas_us": 4.0,
        "a_us": 3.0,
        "b_us": None,
        "a_err": 0.1,
    }
    assert dense.best(row) == "64x32 M=2: floor 1.0, cublas 4.0; a 3.0, cublas 4.0"


@pytest.mark.skipif(torch.cuda.is_available(), reason="is for machines without a GPU")
def test_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dense"])
    assert dense.main() == 2 and "found none" in capsys.readouterr().err
