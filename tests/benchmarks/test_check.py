import json

import benchmark_modules  # noqa: F401
import pytest

from benchmarks import check


def row(M, us=10.0, rate=5.0, **more):
    base = {"shape": "a", "N": 8, "K": 16, "M": M, "floor_us": 1.0, "nvfp4_tvm_us": us, "nvfp4_tvm_err": 1e-3}
    return base | {"tokens_per_s": rate, "other_us": None, "flops_share": 0.5} | more


@pytest.fixture
def run(tmp_path, capsys):
    def run(old, new, *more):
        for name, rows in (("old", old), ("new", new)):
            (tmp_path / name).write_text(json.dumps({"rows": rows}))
        return check.main([str(tmp_path / "old"), str(tmp_path / "new"), *more]), capsys.readouterr().out

    return run


def test_the_same_is_fine(run):
    code, out = run([row(1), row(2)], [row(2), row(1)])
    assert code == 0 and "| nvfp4_tvm_us | 2 | 1.000 | 1.000 |  |" in out and "other_us" not in out
    assert "floor" not in out


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"us": 10.2}, 0),
        ({"us": 10.4}, 1),
        ({"us": 5.0}, 0),
        ({"rate": 4.9}, 0),
        ({"rate": 4.8}, 1),
        ({"rate": 9.0}, 0),
        ({"nvfp4_tvm_err": 1.0, "flops_share": 0.1}, 0),
    ],
)
def test_three_percent(run, change, code):
    assert run([row(1), row(2)], [row(1, **change), row(2, **change)])[0] == code


def test_the_mean_counts_not_a_row(run):
    code, out = run([row(1), row(2)], [row(1, us=10.9), row(2, us=9.5)])
    assert code == 0 and "0.917" in out
    assert run([row(1), row(2)], [row(1, us=10.9), row(2, us=9.5)], "--limit", "0.001")[0] == 1


def test_a_row_that_disappeared_fails(run):
    code, out = run([row(1), row(2)], [row(1)])
    assert code == 1 and "missing: K=16, M=2, N=8, shape=a" in out


def test_figures_can_be_picked(run):
    worse = [row(1, us=20.0)]
    assert run([row(1)], worse, "--only", "tokens")[0] == 0
    assert run([row(1)], worse, "--only", "nvfp4_tvm")[0] == 1
    assert run([row(1)], worse, "--only", "nothing") == (1, "no figure is in both files\n")
