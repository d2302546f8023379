import json

import benchmark_modules  # noqa: F401
import pytest
import typer

from benchmarks import gemm_tables
from benchmarks.gemm_bars import OURS, OURS_SM8X


def row(M, ours, sm89=8.0, shape="a", **more):
    base = {
        "shape": shape,
        "N": 64,
        "K": 32,
        "M": M,
        "floor_us": 1.0,
        f"{OURS}_us": ours,
        f"{OURS_SM8X}_us": sm89,
    }
    return base | {f"{OURS}_err": 1e-3, f"{OURS_SM8X}_err": 1e-3} | more


def report(*rows, **more):
    return {
        "device": "Some GPU",
        "date": "2026-01-02",
        "copy_bytes_per_s": 4.25e12,
        "rows": list(rows),
    } | more


def test_summary():
    rows = [
        row(1, 2.0, marlin_us=8.0, humming_us=2.0),
        row(2, 4.0, marlin_us=4.0, humming_us=None),
        row(300, None),
    ]
    lines = gemm_tables.gemm_summary([report(*rows)]).splitlines()
    assert (
        "over 1 layer shapes" in lines[0] and "Some GPU, 2026-01-02" in lines[0] and "4.25 TB/s" in lines[0]
    )
    assert lines[4:] == [
        "| M = 1..8 | 2.00 (1.00) | 1.00 (1.00) | - | 0.71 (0.50) |",
        "| M >= 256 | - | - | - | - |",
    ]


def test_times():
    rows = [row(1, 2.04, marlin_us=None), row(777, 1.0), row(1024, 123.4), row(1, 3.0, shape="b")]
    lines = gemm_tables.gemm_times([report(*rows)]).splitlines()
    assert lines[2:7] == [
        "| a, N=64, K=32 | M=1 | M=1024 |",
        "| :-- | --: | --: |",
        "| nvfp4_tvm | 2.0 | 123 |",
        "| nvfp4_tvm for sm_89 | 8.0 | 8.0 |",
        "| Marlin | - | - |",
    ]
    assert "| b, N=64, K=32 | M=1 |" in lines


def test_bars():
    lines = gemm_tables.gemm_bars([report(row(1, 2.0, marlin_us=8.0))]).splitlines()
    assert "| M <= 8: speed of Marlin | at least 1x |  | 4x | yes | a, M=1 |" in lines
    assert (
        "| M <= 8, the largest weights: times of the memory floor | at most 1.35x | 1.25x | 2x | **no** | a, M=1 |"
        in lines
    )


def test_accuracy():
    facts = {
        "list": "random",
        "arch": "sm_90",
        "x_dtype": "float16",
        "out_dtype": "float16",
        "cases": 7,
        "failures": 1,
    }
    facts |= {"reproducible": 6, "worst_err": 2.2e-4, "worst_rounding": 2.1e-4, "worst_over_rounding": 1.01}
    lines = gemm_tables.gemm_accuracy(
        [{"gpu": "Some GPU, 1.2", "date": "2026-01-02", "summary": [facts]}]
    ).splitlines()
    assert lines[0].startswith("Some GPU, 1.2, 2026-01-02: ")
    assert (
        lines[-1]
        == "| random problems, sm_90, float16 to float16 | 7 | 1 | 6 | 2.20e-04 | 2.10e-04 | 1.0100 |"
    )


def test_resources():
    family = {"arch": "sm_89", "family": "gemv", "kernels": 3, "registers": [64, 90], "spills": [0, 0]}
    family |= {"shared": [512, 1536], "threads": [32, 256], "blocks_per_sm": [2, 8], "HMMA": [8, 24]}
    lines = gemm_tables.kernel_resources(
        [{"nvrtc": "12.9", "date": "2026-01-02", "shapes": 10, "rows": [family]}]
    ).splitlines()
    assert lines[-1] == (
        "| sm_89 gemv | 3 | 64 to 90 | 0 | 0.5 to 1.5 | 32 to 256 | 2 to 8 | 8 to 24 | 0 | 0 | 0 | 0 | 0 | 0 |"
    )


def test_emulated():
    row = {"arch": "sm_90", "family": "gemv", "M": [5, 8], "wrong": None}
    rows = [row, {**row, "wrong": "M=5: other bits"}, {**row, "arch": "sm_80"}]
    report = {"cpu": "a CPU", "date": "2026-01-02", "ways": [{}, {}, {}], "rows": rows}
    lines = gemm_tables.emulated([report]).splitlines()
    assert lines[0] == "a CPU, 2026-01-02."
    assert lines[-2:] == ["| sm_90 gemv | 2 | 12 | 1 |", "| sm_80 gemv | 1 | 6 | 0 |"]


def test_merge(tmp_path):
    for name, rows in (
        ("a", [row(2, 1.0), row(1, 1.0, marlin_us=5.0)]),
        ("b", [row(1, 3.0, shape="a"), row(1, 2.0, shape="b") | {"N": 128}]),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(report(*rows)))
    output = tmp_path / "out" / "merged.json"
    gemm_tables.merge([tmp_path / "a.json", tmp_path / "b.json"], output, "Marlin of somewhere")
    merged = json.loads(output.read_text())
    assert [(r["shape"], r["M"], r[f"{OURS}_us"]) for r in merged["rows"]] == [
        ("a", 1, 3.0),
        ("a", 2, 1.0),
        ("b", 1, 2.0),
    ]
    assert (
        merged["rows"][0]["marlin_us"] == 5.0 and merged["note"] == "Marlin of somewhere" and merged["date"]
    )
    (tmp_path / "b.json").write_text(json.dumps(report(device="Another")))
    with pytest.raises(typer.BadParameter, match="Another, Some GPU, expected one device"):
        gemm_tables.merge([tmp_path / "a.json", tmp_path / "b.json"], output, "")
