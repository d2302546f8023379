"""``nvfp4-tvm compile``: a checkpoint to a folder that ``generate`` and `nvfp4_tvm.load` run."""

from __future__ import annotations

import time
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from nvfp4_tvm.cli.output import (
    Json,
    Verbose,
    folder_bytes,
    peak_bytes,
    print_json,
    progress,
    stdout_console,
    summary,
)


class Dtype(str, Enum):
    """Values of ``--dtype``."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


def compile_command(
    checkpoint: Annotated[Path, typer.Argument(help="Folder with config.json and safetensors.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to create.")],
    target: Annotated[
        str,
        typer.Option(
            "--target",  # typer 0.27 takes the name from the metavar otherwise
            metavar="TARGET",
            help="llvm (this CPU), cuda:sm_80, cuda:sm_86, cuda:sm_89, cuda:sm_90, or auto: this machine's "
            "GPU, else its CPU.",
        ),
    ] = "auto",
    dtype: Annotated[
        Dtype | None,
        typer.Option(
            help="Of activations and unquantized weights; float32 by default for llvm, else the checkpoint's."
        ),
    ] = None,
    context_length: Annotated[
        int | None,
        typer.Option(metavar="TOKENS", help="Longest text; by default the model's, at most 8192."),
    ] = None,
    prefill_chunk_size: Annotated[
        int | None,
        typer.Option(metavar="TOKENS", help="Tokens of a prompt processed at once; 2048 by default."),
    ] = None,
    tuning_db: Annotated[
        Path | None,
        typer.Option(
            metavar="DB", help="Records of `tune` that choose CUDA kernels, before those that are shipped."
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the output if it is a compiled folder.")
    ] = False,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Neither use nor keep what earlier compilations made.")
    ] = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Compile an NVFP4 (or unquantized) checkpoint into a library with packed parameters."""
    from nvfp4_tvm.compiler import compile

    start = time.perf_counter()
    with progress(quiet=json) as report:
        model = compile(
            checkpoint,
            output,
            target=target,
            dtype=None if dtype is None else dtype.value,
            context_length=context_length,
            prefill_chunk_size=prefill_chunk_size,
            tuning_db=tuning_db,
            force=force,
            use_cache=not no_cache,
            progress=report,
        )
    seconds = time.perf_counter() - start
    size = folder_bytes(model.path)
    manifest = model.manifest
    figures = {"seconds": seconds, "bytes_read": model.bytes_read, "bytes": size, "peak_bytes": peak_bytes()}
    if json:
        print_json({"path": model.path, **figures, "cached": model.cached, "manifest": asdict(manifest)})
        return
    cached = f", {' and '.join(model.cached)} from the cache" if model.cached else ""
    stdout_console().print(
        f"compiled {manifest.model_type} with {manifest.quantized_layers} NVFP4 layers for {manifest.target} "
        f"in {manifest.dtype}, context {manifest.context_length}{cached}, in {seconds:.1f} s: {model.path} "
        f"({summary(model.bytes_read, size, seconds)})",
        markup=False,
        soft_wrap=True,
    )
