"""``nvfp4-tvm inspect``: what a checkpoint, a compiled folder or a tuning database holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nvfp4_tvm.cli.output import (
    Json,
    Verbose,
    folder_bytes,
    human_bytes,
    one_line,
    print_json,
    stderr,
    stdout_console,
)
from nvfp4_tvm.errors import NVFP4Error

if TYPE_CHECKING:
    from nvfp4_tvm.checkpoint import Checkpoint, LayerInfo


def inspect_command(
    path: Annotated[
        Path,
        typer.Argument(help="Folder of a checkpoint, one that `compile` wrote, or a database of `tune`."),
    ],
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """List a checkpoint's layers, what of them would be refused and why, and whether `compile` runs it."""
    from nvfp4_tvm.runtime.folder import MANIFEST

    if path.suffix == ".jsonl":
        _inspect_database(path, json)
    elif (path / MANIFEST).is_file():
        _inspect_compiled(path, json)
    else:
        _inspect_checkpoint(path, json)


# ----------------------------------------------------------------------------------------
# A checkpoint


def _inspect_checkpoint(path: Path, json: bool) -> None:
    from nvfp4_tvm.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(path)
    waiting = nullcontext() if json or not stderr.is_terminal else stderr.status("reading block scales")
    with waiting:
        layers = list(checkpoint.layers().values())
        refusal = compile_refusal(checkpoint, layers)
    totals = totals_by_format(layers)
    model_type = checkpoint.config.get("model_type")
    if json:
        print_json(
            {
                "kind": "checkpoint",
                "path": path,
                "format": checkpoint.format,
                "model_type": model_type,
                "layers": [asdict(layer) for layer in layers],
                "totals": totals,
                "bytes": sum(layer.nbytes for layer in layers),
                "compile": {"supported": refusal is None, "reason": refusal},
            }
        )
        return
    _print_layers(layers)
    out = stdout_console()
    for name, total in totals.items():
        out.print(
            f"{name}: {total['layers']} layers, {total['weights']} weights, {human_bytes(total['bytes'])}",
            markup=False,
        )
    verdict = "yes" if refusal is None else f"no: {one_line(refusal)}"
    out.print(f"format: {one_line(checkpoint.format)}", markup=False)
    out.print(f"compiles: {verdict}", markup=False, soft_wrap=True)


def compile_refusal(checkpoint: Checkpoint, layers: Sequence[LayerInfo]) -> str | None:
    """Return why ``nvfp4-tvm compile`` would refuse a checkpoint; None if it would not."""
    from nvfp4_tvm.models import DecoderConfig, check_tensors

    refused = next((layer.refusal for layer in layers if layer.refusal is not None), None)
    if refused is not None:
        return refused
    try:
        check_tensors(checkpoint, DecoderConfig.from_hf(checkpoint.config))
    except NVFP4Error as error:
        return str(error)
    return None


def totals_by_format(layers: Sequence[LayerInfo]) -> dict[str, dict[str, int]]:
    """Return layers, weights and bytes of each format, the most bytes first."""
    totals: dict[str, dict[str, int]] = {}
    for layer in layers:
        total = totals.setdefault(layer.format, {"layers": 0, "weights": 0, "bytes": 0})
        total["layers"] += 1
        total["weights"] += math.prod(layer.shape)
        total["bytes"] += layer.nbytes
    return dict(sorted(totals.items(), key=lambda item: -item[1]["bytes"]))


def _print_layers(layers: Sequence[LayerInfo]) -> None:
    refused = any(layer.refusal is not None for layer in layers)
    columns = ["layer", "format", "shape", "bytes", "file", *(["refused because"] if refused else [])]
    rows = [
        [layer.name, layer.format, "x".join(map(str, layer.shape)), f"{layer.nbytes}", layer.file]
        + ([layer.refusal or ""] if refused else [])
        for layer in layers
    ]
    _print_table(columns, rows)


# ----------------------------------------------------------------------------------------
# A compiled folder


def _inspect_compiled(path: Path, json: bool) -> None:
    from nvfp4_tvm.checkpoint.storage import open_shards
    from nvfp4_tvm.cli.detokenize import TOKENIZER
    from nvfp4_tvm.runtime.folder import LIBRARY, PARAMS, Manifest, load_params

    manifest = Manifest.read(path)
    load_params(path, manifest)  # says what is missing
    owner = open_shards(path, PARAMS)
    parameters = [owner[name].tensors[name] for name in manifest.param_names]
    library = path / LIBRARY
    library_bytes = library.stat().st_size if library.is_file() else None
    described: dict[str, Any] = asdict(manifest)
    del described["param_names"]
    summary = {
        "library_bytes": library_bytes,
        "parameter_bytes": sum(p.nbytes for p in parameters),
        "bytes": folder_bytes(path),
        "tokenizer": (path / TOKENIZER).is_file(),
    }
    if json:
        listed = [
            {"name": p.name, "dtype": p.dtype, "shape": p.shape, "nbytes": p.nbytes} for p in parameters
        ]
        print_json({"kind": "compiled", "path": path, "manifest": described, **summary, "parameters": listed})
        return
    _print_table(
        ["parameter", "dtype", "shape", "bytes"],
        [[p.name, p.dtype, "x".join(map(str, p.shape)), str(p.nbytes)] for p in parameters],
    )
    out = stdout_console()
    for key, value in {**described, **summary}.items():
        shown = human_bytes(value) if key.endswith("bytes") and value is not None else value
        out.print(f"{key}: {one_line(shown)}", markup=False, soft_wrap=True)


# ----------------------------------------------------------------------------------------
# A tuning database


def _inspect_database(path: Path, json: bool) -> None:
    from nvfp4_tvm.schedules.records import Database

    records = Database.read(path).records
    if json:
        listed = [record.to_json() for record in records]
        print_json({"kind": "database", "path": path, "records": listed})
        return
    _print_table(
        ["weight", "for", "M", "kernel", "us", "floor us", "where from"],
        [
            [
                f"{r.N}x{r.K}",
                f"{r.arch}, {r.x_dtype}, {r.epilogue}",
                str(r.M),
                f"{r.family} {getattr(r.config, 'name', r.config)}",
                f"{r.time_us:.2f}",
                f"{r.floor_us:.2f}",
                f"{r.source}: {r.device}, {r.date}",
            ]
            for r in records
        ],
    )


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE)
    for column in columns:
        table.add_column(column, justify="right" if column == "bytes" else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(one_line(cell)) for cell in row))
    stdout_console().print(table)
