from dataclasses import asdict

import benchmark_modules  # noqa: F401

from benchmarks import convert_tables
from nvfp4_tvm.schedules.repack_kernel import CONFIGS, Config

REPORT = {"cpu": "Some CPU", "cores": 2, "gpu": "Some GPU, 1", "date": "2026-01-02", "load_before": 1.5}
ROW = {
    "model": "8B", "layers": 4, "of_layers": 32, "command": "compile", "sparse": True, "again": False,
    "target": "llvm", "seconds": 10.0, "bytes_read": 2_000_000_000, "gb_per_s": 0.2, "peak_bytes": 1_500_000_000,
    "largest_layer_bytes": 1_050_000_000, "time_v_peak_bytes": None, "load_before": 2.25,
}  # fmt: skip


def test_convert():
    rows = [{"what": "repack", "contender": "memcpy", "gb_per_s": 12.346, "of_copy": 1.0}]
    lines = convert_tables.convert([REPORT | {"rows": rows}]).splitlines()
    assert lines[0].startswith("Some CPU, 2 cores, 2026-01-02, load average 1.5 before: ")
    assert lines[-1] == "| repack: memcpy | 12.35 | 100 % |"


def test_compile_time():
    rows = [
        {"model": "8B", "target": target, "part": part, "seconds": seconds, "cpu_seconds": 9.0}
        for target in ("cuda:sm_80", "cuda:sm_90")
        for part, seconds in (("NVFP4 matmuls", 29.96), ("all", 40.04))
    ]
    for row, kernels in zip(rows[::2], (7, 11), strict=True):
        row["kernels"] = kernels
    lines = convert_tables.compile_time([REPORT | {"rows": rows}]).splitlines()
    assert lines[0].startswith("Some CPU, 2 cores, 2026-01-02, ") and "are 7, 11 CUDA kernels" in lines[0]
    assert lines[-4:] == [
        "|  | NVFP4 matmuls | all |",
        "| :-- | --: | --: |",
        "| 8B, cuda:sm_80 | 30.0 | 40.0 |",
        "| 8B, cuda:sm_90 | 30.0 | 40.0 |",
    ]


def test_fuzz():
    row = {"target": "header", "executions": 1234, "seconds": 33, "peak_mb": 431, "clean": True}
    lines = convert_tables.fuzz([REPORT | {"rows": [row]}]).splitlines()
    assert "nothing was found" in lines[0] and lines[-1] == "| `header` | 1234 | 33 | 431 |"
    assert "something was found" in convert_tables.fuzz([REPORT | {"rows": [row | {"clean": False}]}])


def test_repack_gpu():
    row = {
        "shape": "8B qkv",
        "N": 64,
        "K": 32,
        "us": 12.34,
        "copy_us": 11.0,
        "of_copy": 0.891,
        "pack_us": 81.6,
    }
    rows = [row | {"config": asdict(config), "us": 99.0} for config in CONFIGS if config != Config()]
    rows.insert(1, row | {"config": asdict(Config())})
    lines = convert_tables.repack_gpu([REPORT | {"rows": rows}]).splitlines()
    assert lines[-2:] == ["| :-- | --: | --: | --: | --: |", "| 8B qkv [64, 32] | 12.3 | 11.0 | 89 % | 82 |"]


def test_part_of_a_model_is_extrapolated_and_says_so():
    whole = ROW | {"command": "quantize", "layers": 32, "sparse": False, "time_v_peak_bytes": 1_600_000_000}
    rows = [ROW, whole, whole | {"layers": 2}, ROW | {"layers": 2}]
    lines = convert_tables.large_models([REPORT | {"rows": rows}]).splitlines()
    # 6.98e9 weights of 32 blocks at 4.5 bits, 2 x 0.525e9 of embedding and head at 16, and the norms
    figures = "| 2.0 | 10.0 | 0.20 | 1.50 | 1.05 | 2026-01-02 | 2.2 |"
    assert lines[-5:] == [
        f"| 8B, 2 of 32 layers (holes): compile {figures}",
        f"| 8B, 4 of 32 layers (holes): compile {figures}",
        "| 8B, extrapolated: compile | 6.0 | 30.1 | 0.20 | 1.50 | 1.05 | 2026-01-02 | 2.2 |",
        f"| 8B, 2 of 32 layers: quantize {figures.replace('1.50', '1.60')}",
        f"| 8B, all layers: quantize {figures.replace('1.50', '1.60')}",
    ]


def test_old_results_have_the_load_of_all_their_rows():
    row = {key: value for key, value in ROW.items() if key not in ("load_before", "time_v_peak_bytes")}
    lines = convert_tables.large_models([REPORT | {"rows": [row]}]).splitlines()
    assert lines[-1].endswith("| 1.50 | 1.05 | 2026-01-02 | 1.5 |")


def test_other_targets_are_named_and_extrapolated_by_themselves():
    rows = [ROW | {"target": "cuda:sm_90", "layers": 32}, ROW]
    lines = convert_tables.large_models([REPORT | {"rows": rows}]).splitlines()
    starts = [line.split(" | ")[0] for line in lines[-3:]]
    assert starts == [
        "| 8B, 4 of 32 layers (holes): compile",
        "| 8B, extrapolated: compile",
        "| 8B, all layers (holes): compile for cuda:sm_90",
    ]
