"""Tables of the documentation about MLC-LLM: step times, where a prefill's time goes, what agrees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.markdown import markdown_table

Report = dict[str, Any]
Row = dict[str, Any]

BATCHES = (1, 16, 64)
#: What the rows are besides what ``--quantization NAME`` gives; none is measured without its name here.
NOTES = {
    "nvfp4_skel_head": ", NVFP4 head",
    "nvfp4_skel_f16_head": ", NVFP4 head",
    "nvfp4_skel_no_graph": ", no CUDA graphs",
}
#: The row of nvfp4_skel whose head is quantized, as that of q4f16_1 is.
OURS = "nvfp4_skel_head"


def label(row: Row) -> str:
    """Return the quantization of a row, and what distinguishes it from others of the same."""
    return f"`{row['quantization']}`{NOTES.get(row['name'], '')}"


def where(report: Report) -> str:
    """Return device, date and versions of a report."""
    versions = report["versions"]
    return f"{report['gpu']}, {report['date']}, MLC-LLM {report['mlc_llm'][:8]}, TVM {versions['apache-tvm']}"


def prefill_parts(row: Row) -> dict[str, float]:
    """Return milliseconds of a prefill in attention, in the linear layers of the layers, and in the head.

    The head is the one matmul whose result is cast to float32.
    """
    sums = {"attention": 0.0, "linear": 0.0, "head": 0.0}
    for name, spent in row["prefill_parts_ms"].items():
        if "attention_kv_cache_attention" in name:
            sums["attention"] += spent
        elif "matmul" in name:
            sums["head" if "_f32_" in name or "_cast" in name else "linear"] += spent
    return sums


def fastest(row: Row, batch: int) -> float:
    """Return milliseconds of a decode step; of one sequence, by the faster of the two functions for it."""
    step: float = row[f"decode_{batch}_ms"]
    return min(step, row["decode_single_ms"]) if batch == 1 else step


def _cosine(row: Row, key: str) -> str:
    if not row["finite"]:
        return "not finite"
    return f"{row[key]:.4f}" if key in row else "none"


def _rows(report: Report) -> list[Row]:
    return [row for row in report["rows"] if "prefill_ms" in row]


def steps(report: Report) -> str:
    """Return the table of step times in milliseconds, and the cosines of logits."""
    lines = [
        [
            label(row),
            f"{row['parameter_bytes'] / 1e9:.1f}",
            *(f"{row[f'decode_{batch}_ms']:.2f}" for batch in BATCHES),
            f"{row['decode_single_ms']:.2f}",
            f"{row['prefill_ms']:.0f}",
            _cosine(row, "cosine_prefill"),
            _cosine(row, "cosine_decode"),
        ]
        for row in _rows(report)
    ]
    columns = ["", "GB", *(f"batch {batch}" for batch in BATCHES), "`decode`"]
    columns += [f"prefill {report['torch']['tokens']}", "cosine, prefill", "cosine, decode"]
    return markdown_table(columns, lines)


def split(report: Report) -> str:
    """Return the table of a prefill's parts, and what torch takes for the same linear layers."""
    lines = []
    for row in _rows(report):
        parts = prefill_parts(row)
        cells = (row["prefill_ms"], parts["attention"], parts["linear"], parts["head"])
        lines.append([label(row), *(f"{value:.1f}" for value in cells)])
    for dtype in ("bfloat16", "float16"):
        lines.append([f"torch (cuBLAS), {dtype}", "", "", f"{report['torch'][f'{dtype}_linear_ms']:.1f}", ""])
    return markdown_table(["", "prefill", "attention", "linear layers", "head"], lines)


def decode(reports: Sequence[Report]) -> str:
    """Return both tables for each file that ``benchmarks/mlc_decode.py`` wrote."""
    return "\n".join(
        f"{where(report)}. A Llama of {report['shape']['num_hidden_layers']} layers, hidden size "
        f"{report['shape']['hidden_size']}, random weights, {report['context']} tokens of context a sequence: "
        "milliseconds of a synchronised step of `batch_decode`, of `decode` (one sequence), and of "
        "`batch_prefill`; medians. Cosines compare the logits with a recomputation in float32.\n\n"
        f"{steps(report)}\n"
        "Milliseconds of one prefill, and of it, each call synchronised: attention, the linear layers without the "
        "head, the head. torch computes the same linear layers.\n\n"
        f"{split(report)}"
        for report in reports
    )


def summary(reports: Sequence[Report]) -> str:
    """Return one sentence for each file: the factors between decode steps."""
    sentences = []
    for report in reports:
        rows = {row["name"]: row for row in _rows(report)}
        factors = []
        for name in ("q4f16_1", "q0f16"):
            ratios = [fastest(rows[name], batch) / fastest(rows[OURS], batch) for batch in BATCHES]
            listed = [f"{ratio:.1f}" for ratio in ratios]
            factors.append(f"{', '.join(listed[:-1])} and {listed[-1]} times as fast as with `{name}`")
        batches = f"{', '.join(map(str, BATCHES[:-1]))} and {BATCHES[-1]}"
        sentences.append(
            f"Decode steps of a Llama of 8B shape, its head quantized too, at batch {batches} are "
            f"{' and '.join(factors)} ({report['gpu'].split(',')[0]}, {report['date']}; all compiled by "
            "MLC-LLM on PyPI's TVM, which has neither cuBLAS nor FlashInfer).\n"
        )
    return "".join(sentences)


def _device(report: Report) -> str:
    return f"{report['gpu'] or report['cpu']}, {report['date']}, MLC-LLM {report['mlc_llm'][:8]}"


def agreement(reports: Sequence[Report]) -> str:
    """Return a table for each target of the files that ``benchmarks/verify_mlc.py`` wrote."""
    targets = dict.fromkeys(row.get("target", "cpu") for report in reports for row in report["rows"])
    return "\n".join(_agreement(reports, target) for target in sorted(targets))


def _agreement(reports: Sequence[Report], target: str) -> str:
    of = [
        (report, row)
        for report in reports
        for row in report["rows"]
        if row.get("target", "cpu") == target and "error" not in row
    ]
    lines = [
        [
            f"{row['model']}, {row['format']}",
            f"`{row['quantization']}`",
            f"{row['cosine_prefill']:.6f}",
            f"{row['cosine_decode_min']:.6f}",
            f"{row['cosine_transformers_min']:.6f}" if "cosine_transformers_min" in row else "",
            f"{row['greedy_equal']} of {row['steps'] + 1}",
        ]
        for _, row in of
    ]
    where = dict.fromkeys(_device(report) for report, _ in of)
    steps = sorted({row["steps"] for _, row in of})
    name = "the CPU" if target == "cpu" else target
    return (
        f"{'; '.join(where)}: logits of libraries for {name} beside transformers in float32 on the exactly "
        f"dequantized weights, after a prompt and in {', '.join(map(str, steps))} decode steps (the least "
        "cosine), the same of transformers itself in the quantization's 16-bit dtype, and equal greedy tokens. "
        "Rows `q0f32` are MLC-LLM's own, unquantized.\n\n"
        + markdown_table(["", "", "prefill", "decode", "transformers", "greedy tokens"], lines)
    )


def engine(reports: Sequence[Report]) -> str:
    """Return one table of all files that ``benchmarks/verify_mlc_engine.py`` wrote."""
    lines = [
        [
            f"{row['model']}, {row['format']}",
            f"`{row['quantization']}`",
            "CPU" if row["target"] == "cpu" else row["target"],
            str(row["shards"]),
            *(
                ["failed"] * 2
                if "error" in row
                else [f"{row[f'equal_{way}']} of {row['texts']}" for way in ("alone", "together")]
            ),
        ]
        for report in reports
        for row in report["rows"]
    ]
    tokens = sorted({row["tokens"] for report in reports for row in report["rows"] if "tokens" in row})
    where = dict.fromkeys(_device(report) for report in reports)
    return (
        f"{'; '.join(where)}: `mlc_llm serve`, greedy, {', '.join(map(str, tokens))} tokens to each of several "
        "texts; how many answers are letter by letter those of transformers in float32 on the exactly dequantized "
        "weights, asked one after the other and all at once.\n\n"
        + markdown_table(["", "", "target", "devices", "one by one", "at once"], lines)
    )
