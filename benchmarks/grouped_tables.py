"""Tables of what ``benchmarks/grouped_gemm.py`` measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.markdown import markdown_table

#: Contenders by their columns in the file.
LABELS = {
    "nvfp4_tvm": "nvfp4_tvm",
    "grouped_mm_bf16": "`grouped_mm`, bf16",
    "mm_loop_bf16": "`mm` an expert, bf16",
}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return microseconds in Markdown."""

    def cell(row: dict[str, Any], name: str) -> str:
        if f"{name}_us" not in row:
            return "-"
        value = row[f"{name}_us"]
        return "refused" if value is None else f"{value:.1f}"

    lines = [
        [f"{row['model']} {row['layer']}", str(row["tokens"]), str(row["active"]), f"{row['floor_us']:.1f}"]
        + [cell(row, name) for name in LABELS]
        for row in rows
    ]
    return markdown_table(["", "tokens", "experts touched", "floor", *LABELS.values()], lines)


def grouped_gemm(reports: Sequence[dict[str, Any]]) -> str:
    """Return one table a file."""
    return "\n".join(
        f"{report['device']}, {report['date']}: microseconds a matmul on the experts of a layer, median, cold "
        "weights, launched in a CUDA graph; tokens pick their experts at random. The floor is the bytes of the "
        "weights that the routing touches, activations and results at the speed of a device copy "
        f"({report['copy_bytes_per_s'] / 1e12:.2f} TB/s). PyTorch has the weights in bfloat16; for its loop over "
        "the experts, the host knows beforehand which rows are whose.\n\n" + table(report["rows"])
        for report in reports
    )
