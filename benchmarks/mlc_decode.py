"""Steps of a Llama compiled by MLC-LLM, with NVFP4 weights and with MLC's own quantizations.

    MLC_LLM_SOURCE=... python -m benchmarks.mlc_decode build --out build/mlc            # no GPU needed
    python -m benchmarks.mlc_decode run --libs build/mlc -o benchmarks/results/mlc_decode_NAME.json

``build`` compiles Llama-3-8B's shape with MLC's own compiler and the options that ``mlc_llm compile`` has by
default, for every quantization (:mod:`benchmarks.mlc_libraries`). ``run`` needs TVM and torch, neither MLC nor a
checkpoint: it loads each library in relax.VirtualMachine with random weights and MLC's paged KV cache, in a
process of its own, and measures synchronised steps, from begin_forward to end_forward:

``decode_B_ms``     batch_decode of B sequences with ``context`` tokens each, median
``decode_single_ms``  MLC's function for one sequence
``prefill_ms``      batch_prefill of one sequence of ``prefill`` tokens, median
``prefill_parts_ms``  time in the functions the virtual machine calls, one by one synchronised

Numbers are checked, too: logits of a prefill and of a decode step that follows it against a recomputation in
float32 (``cosine_prefill``, ``cosine_decode``), logits of the first step (in which CUDA graphs are captured)
against those of later ones (``replay_equal``), and of the library with CUDA graphs against that without
(``graph_equal``).

The TVM of PyPI has neither cuBLAS nor FlashInfer, so all libraries use TVM's own attention, and MLC's unquantized
layers TVM's schedules. ``torch`` in the result has what cuBLAS takes for the same layers.
"""

from __future__ import annotations

import argparse
import json
import lzma
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import record
from benchmarks.markdown import markdown_table
from benchmarks.mlc_libraries import SHAPES, VARIANTS, build_all

BATCHES = (1, 16, 64)
CHECKED_TOKENS = 48


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def check(session: Any, row: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Compare a prefill and a decode step with float32; keep the step's logits beside the row."""
    from benchmarks.mlc_reference import Reference

    tokens = min(CHECKED_TOKENS, session.chunk)
    x = session.embeddings(1, 1, tokens + 1)
    session.state["clear"](session.cache)
    session.state["add_sequence"](session.cache, 0)
    prefill = session.prefill(x[:, :tokens], [0], [tokens]).numpy()
    steps = []
    for _ in range(3):
        steps.append(session.decode(x[:, tokens:].contiguous(), [0]).numpy())
        session.pop([0])
    np.save(arguments.output.with_suffix(".npy"), steps[0])
    row["finite"] = bool(np.isfinite(prefill).all() and np.isfinite(steps[0]).all())
    row["replay_equal"] = all(np.array_equal(steps[0], step) for step in steps[1:])
    try:
        expected = Reference(session.weights, session.shape).logits(x[0]).cpu().numpy()
    except KeyError as error:
        row["reference"] = f"none for {error}"
    else:
        row["cosine_prefill"] = cosine(prefill, expected[tokens - 1])
        row["cosine_decode"] = cosine(steps[0], expected[tokens])


def measure(session: Any, row: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Fill ``row`` with times."""
    count = min(max(BATCHES), session.batch)
    batches = [batch for batch in BATCHES if batch <= count]
    session.fill(count, arguments.context)
    for batch in batches:
        x, ids = session.embeddings(batch, batch, 1), list(range(batch))
        undo = partial(session.pop, ids)
        times = session.time(partial(session.decode, x, ids), undo, arguments.repeats, 5)
        row[f"decode_{batch}_ms"] = statistics.median(times)
        row[f"decode_{batch}_min_ms"] = min(times)
        if batch == 1:
            single = partial(session.decode, x, ids, "decode")
            times = session.time(single, undo, arguments.repeats, 5)
            row["decode_single_ms"] = statistics.median(times)
    session.state["clear"](session.cache)
    tokens = min(arguments.prefill, session.chunk)
    x = session.embeddings(0, 1, tokens)
    session.state["add_sequence"](session.cache, 0)

    def prefill() -> Any:
        return session.prefill(x, [0], [tokens])

    times = session.time(prefill, lambda: session.pop([0], tokens), max(3, arguments.repeats // 5), 2)
    row["prefill_ms"], row["prefill_min_ms"], row["prefill_tokens"] = (
        statistics.median(times),
        min(times),
        tokens,
    )
    parts = session.breakdown(prefill)
    top = sorted(parts.items(), key=lambda item: -item[1])[:16]
    row["prefill_parts_ms"] = {name: round(spent, 3) for name, spent in top}


def run_one(arguments: argparse.Namespace) -> None:
    """Measure one library; write its row as far as it comes."""
    from benchmarks.mlc_session import Session

    described = json.loads(arguments.one.read_text())
    row: dict[str, Any] = {
        key: described[key] for key in ("name", "quantization", "cuda_graph", "model_dtype")
    }
    row["library_bytes"], row["compile_seconds"] = described["library_bytes"], described["compile_seconds"]
    start = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory() as name:
            library = Path(name) / f"{described['name']}.so"
            library.write_bytes(lzma.decompress(arguments.one.with_suffix(".so.xz").read_bytes()))
            count = min(max(BATCHES), described["shape"]["max_batch_size"])
            tokens = count * (arguments.context + 16) + described["shape"]["prefill_chunk_size"] + 16
            session = Session(library, described, arguments.device, tokens)
        row["parameter_bytes"] = sum(
            int(np.prod(shape)) * (np.dtype(dtype).itemsize if dtype != "bfloat16" else 2)
            for shape, dtype in zip(
                session.weights.shapes.values(), session.weights.dtypes.values(), strict=True
            )
        )
        row["load_seconds"] = round(time.perf_counter() - start, 1)
        for part in (check, measure):
            try:
                part(session, row, arguments)
            except Exception:
                row[f"{part.__name__}_error"] = traceback.format_exc(limit=4)
            arguments.output.write_text(json.dumps(row))
    except Exception:
        row["error"] = traceback.format_exc(limit=4)
    row["seconds"] = round(time.perf_counter() - start, 1)
    arguments.output.write_text(json.dumps(row))


def torch_linears(shape: dict[str, int], tokens: int, device: str) -> dict[str, Any]:
    """Return milliseconds that torch takes for the linear layers of all layers, 16-bit, distinct weights."""
    hidden, inner, layers = shape["hidden_size"], shape["intermediate_size"], shape["num_hidden_layers"]
    qkv = (shape["num_attention_heads"] + 2 * shape["num_key_value_heads"]) * shape["head_dim"]
    attention = shape["num_attention_heads"] * shape["head_dim"]
    sizes = [(qkv, hidden), (hidden, attention), (2 * inner, hidden), (hidden, inner)]
    synchronize = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    result: dict[str, Any] = {"tokens": tokens}
    for dtype in (torch.bfloat16, torch.float16):
        weights = [
            [torch.randn(n, k, device=device, dtype=dtype) * 0.02 for n, k in sizes] for _ in range(layers)
        ]
        inputs = {k: torch.randn(tokens, k, device=device, dtype=dtype) for _, k in sizes}
        times = []
        for _ in range(8):
            synchronize()
            start = time.perf_counter()
            for layer in weights:
                for weight in layer:
                    inputs[weight.shape[1]] @ weight.T
            synchronize()
            times.append((time.perf_counter() - start) * 1e3)
        result[f"{str(dtype).removeprefix('torch.')}_linear_ms"] = statistics.median(times[3:])
        del weights
    return result


def apart(command: list[str], seconds: float) -> str | None:
    """Run a command for at most some seconds; return what went wrong, or None."""
    try:
        done = subprocess.run(command, timeout=seconds, capture_output=True, text=True)
    except subprocess.TimeoutExpired:
        return f"not done after {seconds:.0f} s"
    return f"exit code {done.returncode}: {done.stderr[-1500:]}" if done.returncode else None


def run(arguments: argparse.Namespace) -> None:
    """Measure every library in a process of its own and write the result after each."""
    names = [variant.name for variant in VARIANTS if (arguments.libs / f"{variant.name}.json").is_file()]
    rows: list[dict[str, Any]] = []
    more: dict[str, Any] = {"context": arguments.context}
    described = [json.loads((arguments.libs / f"{name}.json").read_text()) for name in names]
    if described:
        more.update({key: described[0][key] for key in ("shape", "target", "mlc_llm")})
    deadline = time.monotonic() + arguments.seconds
    with tempfile.TemporaryDirectory() as folder:
        logits: dict[str, np.ndarray] = {}
        for name in names:
            output = Path(folder) / f"{name}.row"
            command = [
                sys.executable,
                "-m",
                "benchmarks.mlc_decode",
                "one",
                str(arguments.libs / f"{name}.json"),
            ]
            command += ["-o", str(output), "--device", arguments.device, "--context", str(arguments.context)]
            command += ["--prefill", str(arguments.prefill), "--repeats", str(arguments.repeats)]
            left = deadline - time.monotonic()
            if left < 10:
                rows.append({"name": name, "error": "no time was left"})
                continue
            failure = apart(command, left)
            row = json.loads(output.read_text()) if output.is_file() else {"name": name}
            if failure is not None:
                row["error"] = failure
            if output.with_suffix(".npy").is_file():
                logits[name] = np.load(output.with_suffix(".npy"))
            plain = logits.get(f"{name.removesuffix('_no_graph')}")
            if name.endswith("_no_graph") and plain is not None and name in logits:
                row["graph_equal"] = bool(np.array_equal(plain, logits[name]))
            rows.append(row)
            print(json.dumps(row), flush=True)
            record.write(arguments.output, rows, **more)
        if described:
            try:
                more["torch"] = torch_linears(described[0]["shape"], arguments.prefill, arguments.device)
            except Exception:
                more["torch"] = {"error": traceback.format_exc(limit=4)}
        record.write(arguments.output, rows, **more)
    print(table(rows, more))


def table(rows: list[dict[str, Any]], more: dict[str, Any]) -> str:
    """Return the times as a markdown table."""
    columns = [f"decode_{batch}_ms" for batch in BATCHES] + [
        "decode_single_ms",
        "prefill_ms",
        "cosine_decode",
    ]
    cells = [
        [row["name"], *(f"{row[column]:.4g}" if column in row else "" for column in columns)] for row in rows
    ]
    text = markdown_table(["", *columns], cells)
    return f"{text}\n\ntorch, linear layers of a prefill: {more.get('torch')}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("build")
    make.add_argument("--out", type=Path, required=True)
    make.add_argument("--shape", choices=SHAPES, default="llama-3-8b")
    make.add_argument("--target", default="nvidia/nvidia-h100", help="as mlc_llm compile --device takes it")
    make.add_argument("names", nargs="*", help="libraries to build; default: all")
    for name in ("run", "one"):
        measured = commands.add_parser(name)
        measured.add_argument("-o", "--output", type=Path, required=True)
        measured.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
        measured.add_argument("--context", type=int, default=512)
        measured.add_argument("--prefill", type=int, default=2048)
        measured.add_argument("--repeats", type=int, default=40)
        if name == "run":
            measured.add_argument("--libs", type=Path, required=True)
            measured.add_argument("--seconds", type=float, default=240, help="no library begins after that")
        else:
            measured.add_argument("one", type=Path, help="description of a library")
    arguments = parser.parse_args()
    if arguments.command == "build":
        build_all(arguments.names, SHAPES[arguments.shape], arguments.target, arguments.out)
    elif arguments.command == "run":
        run(arguments)
    else:
        run_one(arguments)


if __name__ == "__main__":
    main()
