import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("make_tables", ROOT / "docs" / "make_tables.py")
make_tables = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(make_tables)


def report(**more):
    figures = [
        {"contender": name, "M": M, "N": 64, "K": 32, "cold": cold, "median_ms": ms + M + cold / 2}
        for name, ms in (("torch bfloat16", 0.125), ("nvfp4 table, float32", 0.0), ("nvfp4 cpu-gemm", 9.0))
        for M in (8, 1)
        for cold in (True, False)
    ]
    base = {
        "cpu": "Some CPU",
        "llvm_cpu": "some",
        "threads": 2,
        "date": "2026-01-02",
        "versions": {"torch": "9"},
    }
    return base | {"rows": figures} | more


def test_the_documents_hold_what_the_measurements_say():
    assert make_tables.main(["--check"]) == 0, "run python docs/make_tables.py"


def test_cpu_linear():
    lines = make_tables.cpu_linear([report()]).splitlines()
    assert lines[0].startswith(
        "Some CPU (some), 2 threads, 2026-01-02, torch 9: a linear layer with N=64, K=32, "
    )
    assert lines[2:] == [
        "|  | M=1, warm | M=1, cold | M=8, warm | M=8, cold |",
        "| :-- | --: | --: | --: | --: |",
        "| torch bfloat16 | 1.12 | 1.62 | 8.12 | 8.62 |",
        "| nvfp4_tvm, float32 | 1.00 | 1.50 | 8.00 | 8.50 |",
    ]


def test_quantize():
    row = {
        "format": "modelopt",
        "method": "amax",
        "mb_per_s": 812.6,
        "peak_bytes": 9.5e8,
        "largest_tensor_bytes": 1e8,
    }
    lines = make_tables.quantize(
        [{"cpu": "Some CPU", "cores": 2, "date": "2026-01-02", "load_before": 0.5, "rows": [row]}]
    ).splitlines()
    assert lines[0].startswith("Some CPU, 2 cores, 2026-01-02, load average 0.5 before: ")
    assert lines[-1] == "| modelopt, amax | 813 | 950 | 100 |"


def test_agreement():
    row = {"reference": "llama", "target": "cuda:sm_90", "dtype": "float16", "cosine_prefill_min": 0.99999945}
    row |= {"cosine_decode_min": 1.0, "greedy_steps_equal": 15, "steps": 16}
    report = {"gpu": "Some GPU, 1.2", "cpu": "Some CPU", "date": "2026-01-02", "rows": [row]}
    lines = make_tables.agreement([report, report]).splitlines()
    assert lines[0].startswith("Some GPU, 1.2, 2026-01-02: ")
    assert lines[-2:] == ["| llama, cuda:sm_90, float16 | 0.9999995 | 1.0000000 | 15 of 16 |"] * 2


def test_generation():
    row = {
        "folder": "8B-nvfp4", "prompt": 128, "tokens": 16, "first_token_ms": 812.34,
        "prefill_tokens_per_s": 157.57, "decode_tokens_per_s": 9.96,
    }  # fmt: skip
    report = {"cpu": "A CPU", "gpu": None, "cores": 2, "date": "2026-01-02", "rows": [row]}
    lines = make_tables.generation([report]).splitlines()
    assert lines[0].startswith("A CPU, 2 cores, 2026-01-02: ") and "16 tokens" in lines[0]
    assert lines[-1] == "| 8B-nvfp4, 128 | 812.3 | 157.6 | 10.0 |"


def test_dense_layers():
    row = {
        "N": 64,
        "K": 32,
        "M": 2,
        "dtype": "float16",
        "floor_us": 1.0,
        "nvfp4_tvm_us": 2.26,
        "cublas_us": None,
    }
    report = {"device": "Some GPU", "date": "2026-01-02", "copy_bytes_per_s": 4.2e12, "rows": [row]}
    lines = make_tables.dense_layers([report]).splitlines()
    assert lines[0].startswith("Some GPU, 2026-01-02: ") and "4.20 TB/s" in lines[0]
    assert lines[-1] == "| 64 x 32, float16 | 2 | 1.0 | 2.3 | wrong |"


def test_gemm_calls():
    times = {"ours_us": 2.0, "ours_warm_us": 1.5, "ours_latency_us": 9.0}
    rows = [
        {"shape": "64x32", "M": M, "floor_us": 1.0, "ours_err": 0.001 * M, "bandwidth_share": 0.5, **times}
        for M in (1, 2)
    ]
    report = {
        "device": "Some GPU",
        "date": "2026-01-02",
        "copy_bytes_per_s": 4e12,
        "mm_flops": 7e14,
        "rows": rows,
    }
    lines = make_tables.gemm_calls([report]).splitlines()
    assert "torch.mm 700 TFLOP/s" in lines[0] and "ours 0.0020" in lines[0]
    assert [line for line in lines if line.startswith("| 64x32")] == [
        "| 64x32, 1 | 1.0 | 2.0 / 1.5 / 9.0 | 0.5 |  |"
    ]


def test_tables_are_filled_from_files(tmp_path):
    text = "a\n<!-- table: cpu_linear -->\nold\nlines\n<!-- end of table -->\nb\n"
    empty = make_tables.filled(text, tmp_path)
    assert (
        "No measurement" in empty and "old" not in empty and empty.startswith("a\n") and empty.endswith("b\n")
    )
    for name in ("one", "two"):
        (tmp_path / f"cpu_linear_{name}.json").write_text(json.dumps(report(cpu=f"CPU {name}")))
    full = make_tables.filled(empty, tmp_path)
    assert "CPU one" in full and "CPU two" in full and "No measurement" not in full
    assert make_tables.filled(full, tmp_path) == full


def test_unknown_tables_are_refused():
    with pytest.raises(ValueError, match="found the table 'nonsense'"):
        make_tables.filled("<!-- table: nonsense -->\n<!-- end of table -->")


def test_check_writes_nothing(monkeypatch, tmp_path, capsys):
    document, measurement = tmp_path / "a.md", tmp_path / "peer_gemm_card.json"
    stale = "<!-- table: cpu_linear -->\nx\n<!-- end of table -->\n"
    document.write_text(stale)
    rows = [{"shape": "a", "N": 8, "K": 16, "M": 1, "floor_us": 1.0, "nvfp4_tvm_us": 2.0}]
    measurement.write_text(json.dumps({"device": "Some GPU", "date": "2026-01-02", "rows": rows}))
    for name in ("ROOT", "RESULTS", "IMAGES"):
        monkeypatch.setattr(make_tables, name, tmp_path)
    monkeypatch.setattr(make_tables, "DOCUMENTS", (document,))
    assert make_tables.main(["--check"]) == 1
    printed = "out of date: a.md, gemm_times_card.png, gemm_speedups_card.png\n"
    assert document.read_text() == stale and capsys.readouterr().out == printed
    assert not list(tmp_path.glob("*.png"))
    assert make_tables.main([]) == 0 and document.read_text() != stale
    assert make_tables.main(["--check"]) == 0
