import json
import math

import benchmark_modules  # noqa: F401
import pytest

from benchmarks import gemm_bars
from benchmarks.shapes import ROWS, SHAPES


def measured(**change):
    """Rows in which every bar is reached; ``change`` maps a key to a function of the row."""
    rows = []
    for shape, (N, K) in SHAPES.items():
        for M in ROWS:
            flops = 2e-6 * M * N * K
            row = {"shape": shape, "N": N, "K": K, "M": M, "floor_us": N * K * 0.5625 / 4e6}
            ours = max(1.2 * row["floor_us"], flops / 700)
            row |= {"nvfp4_tvm_us": ours, "nvfp4_tvm_err": 1.66e-3, "nvfp4_tvm_sm89_err": 1.66e-3}
            row |= {"nvfp4_tvm_sm89_us": max(1.3 * row["floor_us"], flops / 530)}
            row |= {
                "marlin_us": 1.5 * row["nvfp4_tvm_sm89_us"],
                "humming_us": 1.1 * ours,
                "cublas_bf16_us": 1.02 * ours,
            }
            rows.append(row | {key: function(row) for key, function in change.items()})
    return rows


def failed(rows):
    return [finding.bar.name for finding in gemm_bars.judge_all(rows) if not finding.passed]


def test_all_reached():
    findings = gemm_bars.judge_all(measured())
    assert failed(measured()) == [] and len(findings) == 13
    by_name = {finding.bar.name: finding for finding in findings}
    assert by_name["M >= 256: times of cuBLAS bf16"].figure == pytest.approx(1 / 1.02)
    assert by_name["sm_8x kernels, M >= 1024: TFLOP/s"].figure == pytest.approx(530)
    assert by_name["sm_8x kernels, every M: speed of Marlin, geometric mean"].figure == pytest.approx(1.5)
    assert (
        by_name["sm_8x kernels, every M: speed of Marlin, geometric mean"].where == f"{10 * len(ROWS)} rows"
    )


def only(shape, M, key, value):
    return {key: lambda row: value(row) if (row["shape"], row["M"]) == (shape, M) else row[key]}


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (
            only("llama3-70b down", 4, "nvfp4_tvm_us", lambda row: 1.36 * row["floor_us"]),
            ["M <= 8, the largest weights: times of the memory floor", "M <= 8: speed of Humming"],
        ),
        # not one of the largest
        (only("square-4096", 4, "nvfp4_tvm_us", lambda row: 1.31 * row["floor_us"]), []),
        (only("square-4096", 1, "marlin_us", lambda row: 0.9 * row["nvfp4_tvm_us"]),
         ["M <= 8: speed of Marlin", "sm_8x kernels, every M: speed of Marlin"]),
        (only("llama3-8b qkv", 128, "cublas_bf16_us", lambda row: 0.99 * row["nvfp4_tvm_us"]),
         ["M = 16..128: speed of cuBLAS bf16"]),
        (only("llama3-8b qkv", 192, "cublas_bf16_us", lambda row: 0.5 * row["nvfp4_tvm_us"]), []),
        (only("llama3-8b qkv", 777, "cublas_bf16_us", lambda row: 0.95 * row["nvfp4_tvm_us"]), []),
        (only("llama3-8b qkv", 777, "cublas_bf16_us", lambda row: 0.92 * row["nvfp4_tvm_us"]),
         ["M >= 256: times of cuBLAS bf16"]),
        (only("llama3-8b qkv", 4096, "humming_us", lambda row: 0.99 * row["nvfp4_tvm_us"]),
         ["M >= 256: speed of Humming"]),
        (only("square-4096", 5, "nvfp4_tvm_err", lambda row: 1.71e-3), ["every M: relative error"]),
        (only("square-4096", 5, "nvfp4_tvm_err", lambda row: math.nan), ["every M: relative error"]),
        (only("square-4096", 5, "nvfp4_tvm_err", lambda row: "RuntimeError: no"), ["every M: relative error"]),
        (only("square-4096", 2048, "nvfp4_tvm_sm89_us", lambda row: 1.2 * row["nvfp4_tvm_sm89_us"]),
         ["sm_8x kernels, M >= 1024: TFLOP/s"]),
        ({"marlin_us": lambda row: 1.3 * row["nvfp4_tvm_sm89_us"]},
         ["sm_8x kernels, every M: speed of Marlin, geometric mean"]),
        # that a peer refuses is no point for or against us; that we do is against
        (only("square-4096", 1, "humming_us", lambda row: None), []),
        (only("square-4096", 300, "nvfp4_tvm_us", lambda row: None),
         ["M >= 256: times of cuBLAS bf16", "M >= 256: speed of Humming"]),
        (only("square-4096", 300, "nvfp4_tvm_sm89_us", lambda row: None),
         ["sm_8x kernels, every M: speed of Marlin", "sm_8x kernels, every M: speed of Marlin, geometric mean"]),
    ],
)  # fmt: skip
def test_each_bar_can_be_missed(change, names):
    assert failed(measured(**change)) == names


def test_nothing_measured_is_no_pass():
    assert len(failed([])) == 13


def test_the_worst_is_named():
    rows = measured(**only("llama3-8b qkv", 777, "cublas_bf16_us", lambda row: 0.5 * row["nvfp4_tvm_us"]))
    finding = next(f for f in gemm_bars.judge_all(rows) if f.bar.name == "M >= 256: times of cuBLAS bf16")
    assert finding.figure == pytest.approx(2) and finding.where == "llama3-8b qkv, M=777"


def test_largest_counts_equals():
    rows = [{"shape": str(i), "N": size, "K": 1} for i, size in enumerate((9, 8, 7, 6, 6, 5))]
    assert [gemm_bars.largest(rows)(row) for row in rows] == [True] * 5 + [False]


@pytest.mark.parametrize(
    ("figure", "text"),
    [(None, "-"), (math.inf, "refused"), (1.234, "1.23x"), (450.4, "450x"), (0.00166, "0.00166x")],
)
def test_number(figure, text):
    assert gemm_bars.number(figure, "x") == text


def test_the_command(tmp_path, capsys):
    path = tmp_path / "a.json"
    for rows, code in ((measured(), 0), (measured(nvfp4_tvm_err=lambda row: 1.0), 1)):
        path.write_text(json.dumps({"rows": rows}))
        with pytest.raises(SystemExit) as caught:
            gemm_bars.main(path, 2)
        assert caught.value.code == code
    printed = capsys.readouterr().out
    assert "every M: relative error: missed in 220 of 220 rows" in printed and "goal reached" in printed
