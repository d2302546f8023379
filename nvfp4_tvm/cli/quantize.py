"""``nvfp4-tvm quantize``: an unquantized Hugging Face checkpoint to NVFP4."""

from __future__ import annotations

from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from nvfp4_tvm.cli.output import (
    Json,
    Verbose,
    peak_bytes,
    print_json,
    progress,
    stdout_console,
    summary,
)


class OutputFormat(str, Enum):
    """Values of ``--format``."""

    COMPRESSED_TENSORS = "compressed-tensors"
    MODELOPT = "modelopt"


class Method(str, Enum):
    """Values of ``--method``."""

    AMAX = "amax"
    FOUR_OVER_SIX = "four-over-six"


def quantize_command(
    src: Annotated[Path, typer.Argument(help="Folder of a bf16, fp16 or fp32 checkpoint.")],
    dst: Annotated[Path, typer.Argument(help="Folder to write; must not exist, or be empty.")],
    format: Annotated[
        OutputFormat, typer.Option(help="Whose names of tensors and config to write.")
    ] = OutputFormat.COMPRESSED_TENSORS,
    method: Annotated[
        Method,
        typer.Option(
            help="amax maps a block's largest magnitude to 6; four-over-six to 6 or 4, whichever is closer."
        ),
    ] = Method.AMAX,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Leave these layers as they are: a name, a shell wildcard or re:REGEX. May be repeated.",
        ),
    ] = None,
    separate_global_scales: Annotated[
        bool,
        typer.Option(
            "--separate-global-scales",
            help="Give q, k, v and gate, up each its own global scale: exact here, but engines that fuse "
            "these layers keep one.",
        ),
    ] = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Quantize a checkpoint's linear layers to NVFP4, one tensor at a time."""
    from nvfp4_tvm.quantize import quantize_checkpoint

    with progress(quiet=json) as report:
        done = quantize_checkpoint(
            src,
            dst,
            format=format.value,
            method="amax" if method is Method.AMAX else "four_over_six",
            exclude=exclude or (),
            share_global_scales=not separate_global_scales,
            progress=lambda read, total, _name: report("quantize", read, total),
        )
    if json:
        print_json({"path": dst, **asdict(done), "mb_per_s": done.mb_per_s, "peak_bytes": peak_bytes()})
        return
    out = stdout_console()
    out.print(
        f"quantized {done.layers} layers and kept {len(done.kept)} of {src} in {done.seconds:.1f} s, written to "
        f"{dst} ({summary(done.bytes_read, done.bytes_written, done.seconds)})",
        markup=False,
        soft_wrap=True,
    )
