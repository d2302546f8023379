"""Fill the marked tables of README.md and docs/ from the measurements in benchmarks/results; draw the pictures.

    python docs/make_tables.py            rewrite them
    python docs/make_tables.py --check    fail if they differ from what the measurements say

A marked table lies between ``<!-- table: NAME -->`` and ``<!-- end of table -->``; NAME is a key of `TABLES`.
No figure of the documentation is typed by hand.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import (  # noqa: E402
    convert_tables,
    dense,
    e2e,
    gemm,
    gemm_plot,
    gemm_tables,
    grouped_tables,
    mlc_tables,
    tuning_tables,
)
from benchmarks.markdown import markdown_table  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
IMAGES = gemm_plot.IMAGES
#: Results that `benchmarks.gemm_plot` draws.
PICTURED = "peer_gemm_*.json"

_MARKED = re.compile(r"(<!-- table: (?P<name>\w+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def cpu_linear(reports: Sequence[dict[str, Any]]) -> str:
    """Return one table a file that ``benchmarks/cpu_linear.py`` wrote: median milliseconds a call."""
    parts = []
    for report in reports:
        # The kernels that the dispatch chooses, beside torch; the families it chooses from are in the file.
        figures = [row for row in report["rows"] if not row["contender"].startswith("nvfp4 cpu-")]
        N, K = figures[0]["N"], figures[0]["K"]
        Ms = sorted({figure["M"] for figure in figures})
        median = {(f["contender"], f["M"], f["cold"]): f["median_ms"] for f in figures}
        contenders = list(dict.fromkeys(figure["contender"] for figure in figures))
        columns = ["", *(f"M={M}, {'cold' if cold else 'warm'}" for M in Ms for cold in (False, True))]
        rows = [
            [
                name.replace("nvfp4 table", "nvfp4_tvm"),
                *(f"{median[name, M, cold]:.2f}" for M in Ms for cold in (False, True)),
            ]
            for name in contenders
        ]
        parts.append(
            f"{report['cpu']} ({report['llvm_cpu']}), {report['threads']} threads, {report['date']}, torch "
            f"{report['versions']['torch']}: a linear layer with N={N}, K={K}, median milliseconds a call. "
            "Warm calls use one weight again and again, cold ones rotate over copies beyond any cache.\n\n"
            + markdown_table(columns, rows)
        )
    return "\n".join(parts)


def quantize(reports: Sequence[dict[str, Any]]) -> str:
    """Return one table a file that ``benchmarks/quantize.py`` wrote."""
    parts = []
    for report in reports:
        rows = [
            [
                f"{row['format']}, {row['method']}",
                f"{row['mb_per_s']:.0f}",
                f"{row['peak_bytes'] / 1e6:.0f}",
                f"{row['largest_tensor_bytes'] / 1e6:.0f}",
            ]
            for row in report["rows"]
        ]
        parts.append(
            f"{convert_tables.where(report)}: `nvfp4-tvm quantize`, megabytes (10^6) of weights read a second, "
            "and peak memory of the process beside the largest tensor.\n\n"
            + markdown_table(["", "MB/s", "peak MB", "largest tensor MB"], rows)
        )
    return "\n".join(parts)


def agreement(reports: Sequence[dict[str, Any]]) -> str:
    """Return one table of all files that ``benchmarks/verify_library.py`` wrote."""
    rows = [
        [
            f"{row['reference']}, {row['target']}, {row['dtype']}",
            f"{row['cosine_prefill_min']:.7f}",
            f"{row['cosine_decode_min']:.7f}",
            f"{row['greedy_steps_equal']} of {row['steps']}",
        ]
        for report in reports
        for row in report["rows"]
    ]
    where = dict.fromkeys(f"{report['gpu'] or report['cpu']}, {report['date']}" for report in reports)
    return (
        f"{'; '.join(where)}: logits beside transformers in float32 on the exactly dequantized weights, least "
        "cosine over the positions, and equal greedy tokens.\n\n"
        + markdown_table(["", "prefill", "decode", "greedy tokens"], rows)
    )


def generation(reports: Sequence[dict[str, Any]]) -> str:
    """Return one table a file that ``benchmarks/e2e.py`` wrote."""
    parts = []
    for report in reports:
        tokens = ", ".join(map(str, sorted({row["tokens"] for row in report["rows"]})))
        parts.append(
            f"{report['gpu'] or report['cpu']}, {report['cores']} cores, {report['date']}: folders that "
            f"`nvfp4-tvm compile` wrote; {tokens} tokens after prompts of several lengths.\n\n"
            + e2e.table(report["rows"])
        )
    return "\n".join(parts)


def dense_layers(reports: Sequence[dict[str, Any]]) -> str:
    """Return one table a file that ``benchmarks/dense.py`` wrote."""
    return "\n".join(
        f"{report['device']}, {report['date']}: microseconds of a linear layer with 16-bit weights, cold, median. "
        f"The floor is its bytes at {report['copy_bytes_per_s'] / 1e12:.2f} TB/s, the speed of a device copy; "
        "reads alone are faster.\n\n" + dense.table(report["rows"])
        for report in reports
    )


def gemm_calls(reports: Sequence[dict[str, Any]]) -> str:
    """Return a table of some of the rows that ``benchmarks/gemm.py`` wrote."""
    parts = []
    for report in reports:
        names = [key[: -len("_latency_us")] for key in report["rows"][0] if key.endswith("_latency_us")]
        worst = {name: max(row[f"{name}_err"] for row in report["rows"]) for name in names}
        errors = ", ".join(f"{name} {error:.4f}" for name, error in worst.items())
        shown = [row for row in report["rows"] if row["M"] in GEMM_CALLS_ROWS]
        parts.append(
            f"{report['device']}, {report['date']}; device copy {report['copy_bytes_per_s'] / 1e12:.2f} TB/s, "
            f"torch.mm {report['mm_flops'] / 1e12:.0f} TFLOP/s, the shares are of these. Greatest relative errors "
            f"of all rows: {errors}. {gemm.table(shown, names)}"
        )
    return "\n".join(parts)


#: M of the rows that the documents show of ``benchmarks/gemm.py``; the file has all.
GEMM_CALLS_ROWS = (1, 64, 1024)

#: Name of a table: pattern of its results, and what turns them into Markdown.
TABLES: dict[str, tuple[str, Callable[[Sequence[dict[str, Any]]], str]]] = {
    "agreement": ("verify_*.json", agreement),
    "compile_time": ("compile_time_*.json", convert_tables.compile_time),
    "fuzz": ("fuzz_*.json", convert_tables.fuzz),
    "dense": ("dense_h*.json", dense_layers),
    "e2e": ("e2e_*.json", generation),
    "emulated": ("emulated_*.json", gemm_tables.emulated),
    "gemm_calls": ("gemm_h*.json", gemm_calls),
    "convert": ("convert_*.json", convert_tables.convert),
    "cpu_linear": ("cpu_linear_*.json", cpu_linear),
    "gemm_accuracy": ("gemm_accuracy_*.json", gemm_tables.gemm_accuracy),
    "gemm_bars": ("peer_gemm_*.json", gemm_tables.gemm_bars),
    "gemm_summary": ("peer_gemm_*.json", gemm_tables.gemm_summary),
    "gemm_times": ("peer_gemm_*.json", gemm_tables.gemm_times),
    "grouped_gemm": ("grouped_gemm_*.json", grouped_tables.grouped_gemm),
    "kernel_resources": ("kernel_resources*.json", gemm_tables.kernel_resources),
    "sanitizer": ("sanitizer_*.json", gemm_tables.sanitizer),
    "large_models": ("large_models_*.json", convert_tables.large_models),
    "repack_gpu": ("repack_gpu_*.json", convert_tables.repack_gpu),
    "quantize": ("quantize_*.json", quantize),
    "tuning_gain": ("tuning_gain_*.json", tuning_tables.gain),
    "tuning_records": ("tuning_records_*.json", tuning_tables.records),
    "mlc_engine": ("mlc_engine_*.json", mlc_tables.engine),
    "mlc_agreement": ("mlc_agreement_*.json", mlc_tables.agreement),
    "mlc_decode": ("mlc_decode_*.json", mlc_tables.decode),
    "mlc_summary": ("mlc_decode_*.json", mlc_tables.summary),
}


def table(name: str, results: Path = RESULTS) -> str:
    """Return the Markdown of a table, or a line that says that there is none yet.

    Raises
    ------
    ValueError
        If there is no such table.
    """
    if name not in TABLES:
        raise ValueError(f"found the table {name!r}, expected one of {', '.join(TABLES)}")
    pattern, render = TABLES[name]
    reports = [json.loads(path.read_text()) for path in sorted(results.glob(pattern))]
    return render(reports) if reports else f"No measurement ({pattern}) has been committed yet.\n"


def filled(text: str, results: Path = RESULTS) -> str:
    """Return a document with its marked tables made anew."""
    return _MARKED.sub(lambda match: match[1] + table(match["name"], results) + match[3], text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite or check the documents; return the exit code."""
    parser = argparse.ArgumentParser(
        description="Fill the tables and draw the pictures of the documentation from measurements."
    )
    parser.add_argument(
        "--check", action="store_true", help="change nothing, fail if something is out of date"
    )
    check = parser.parse_args(arguments).check
    stale = []
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        new = filled(text)
        if new != text:
            stale.append(path.relative_to(ROOT).as_posix())
            if not check:
                path.write_text(new, encoding="utf-8")
    for report in sorted(RESULTS.glob(PICTURED)):
        pictures = gemm_plot.stale(report, IMAGES) if check else gemm_plot.draw(report, IMAGES)
        stale += [path.relative_to(ROOT).as_posix() for path in pictures]
    if stale:
        print(f"{'out of date' if check else 'rewritten'}: {', '.join(stale)}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
