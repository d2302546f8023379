import benchmark_modules  # noqa: F401

from benchmarks.grouped_tables import grouped_gemm

ROW = {
    "model": "m", "layer": "l", "tokens": 4, "active": 3.5, "floor_us": 1.0,
    "nvfp4_tvm_us": 2.04, "mm_loop_bf16_us": None,
}  # fmt: skip


def test_a_table_says_what_was_refused_and_what_there_was_not():
    report = {"device": "Some GPU", "date": "2026-01-02", "copy_bytes_per_s": 4.321e12, "rows": [ROW]}
    lines = grouped_gemm([report, report]).splitlines()
    assert lines[0].startswith("Some GPU, 2026-01-02: microseconds") and "4.32 TB/s" in lines[0]
    assert lines[2].startswith("|  | tokens | experts touched | floor | nvfp4_tvm |")
    assert lines.count("| m l | 4 | 3.5 | 1.0 | 2.0 | - | refused |") == 2
