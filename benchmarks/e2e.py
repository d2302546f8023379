"""Speed of compiled models: time to the first token by length of the prompt, and tokens a second after it.

    python -m benchmarks.e2e OUT... --prompts 16,512,2048 --tokens 128 -o benchmarks/results/e2e_NAME.json

Each OUT is a folder that ``nvfp4-tvm compile`` wrote, also of an unquantized checkpoint to compare with.
Prompts are token ids; the first generation of a folder is not counted.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

import nvfp4_tvm
from benchmarks import record
from benchmarks.markdown import markdown_table
from benchmarks.shapes import parse_rows
from nvfp4_tvm.runtime.folder import Manifest

Row = dict[str, Any]


def prompt_of(length: int, vocabulary: int) -> list[int]:
    """Return token ids that are spread over the vocabulary."""
    return [(7919 * i + 1) % vocabulary for i in range(length)]


def measure(folder: Path, prompts: Sequence[int], tokens: int, repeats: int) -> list[Row]:
    """Return a row for each length of prompt that fits the context; medians over some generations."""
    manifest = Manifest.read(folder)
    runner = nvfp4_tvm.load(folder)
    rows = []
    for length in prompts:
        if length + tokens > manifest.context_length:
            continue
        prompt = prompt_of(length, manifest.vocab_size)
        runner.generate(prompt, 2)
        results = [runner.generate(prompt, tokens) for _ in range(repeats)]
        first = statistics.median(result.seconds_prefill for result in results)
        rows.append(
            {
                "folder": folder.name,
                "target": manifest.target,
                "dtype": manifest.dtype,
                "nvfp4_layers": manifest.quantized_layers,
                "tuning": list(manifest.tuning),
                "prompt": length,
                "tokens": tokens,
                "first_token_ms": round(first * 1e3, 3),
                "prefill_tokens_per_s": round(length / first, 1),
                "decode_tokens_per_s": round(statistics.median(r.tokens_per_second for r in results), 2),
            }
        )
    return rows


def table(rows: Sequence[Row]) -> str:
    """Return the figures in Markdown."""
    columns = ["folder, prompt", "first token ms", "prefill tokens/s", "decode tokens/s"]
    names = ("first_token_ms", "prefill_tokens_per_s", "decode_tokens_per_s")
    lines = [[f"{row['folder']}, {row['prompt']}", *(f"{row[name]:.1f}" for name in names)] for row in rows]
    return markdown_table(columns, lines)


def picture(rows: Sequence[Row]) -> Figure:
    """Return two panels: time to the first token and speed of decoding, by length of the prompt."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, name in zip(panels, ("first_token_ms", "decode_tokens_per_s"), strict=True):
        for folder in dict.fromkeys(row["folder"] for row in rows):
            points = [(row["prompt"], row[name]) for row in rows if row["folder"] == folder]
            axes.plot(*zip(*points, strict=True), "o-", label=folder)
        axes.set(xscale="log", xlabel="tokens of the prompt", ylabel=name.replace("_", " "))
        lengths = sorted({row["prompt"] for row in rows})
        axes.set_xticks(lengths, labels=map(str, lengths))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=7)
    return figure


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+", help="folders that nvfp4-tvm compile wrote")
    parser.add_argument("--prompts", type=parse_rows, default="16,128,512", help="lengths of prompts")
    parser.add_argument("--tokens", type=int, default=64, help="to generate")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path, help="JSON; a picture goes beside it")
    arguments = parser.parse_args()
    rows = [
        row
        for folder in arguments.folders
        for row in measure(folder, arguments.prompts, arguments.tokens, arguments.repeats)
    ]
    if not rows:
        print("no prompt with the tokens to generate fits a context", file=sys.stderr)
        return 2
    print(table(rows))
    if arguments.output:
        record.write(arguments.output, rows)
        picture(rows).savefig(arguments.output.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
