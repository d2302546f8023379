"""``nvfp4-tvm cache``: what is kept of earlier compilations."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Annotated

import typer

from nvfp4_tvm.cli.output import Json, human_bytes, one_line, print_json, stdout_console

if TYPE_CHECKING:
    from nvfp4_tvm.model_cache import ModelCache

app = typer.Typer(
    help="List or remove the compiled libraries and packed parameters of earlier compilations.",
    no_args_is_help=True,
)


@app.command("ls")
def list_command(json: Json = False) -> None:
    """List entries, the one used last first, with the folder and its limit."""
    cache = _cache()
    entries = [] if cache is None else cache.entries()
    total = sum(entry.nbytes for entry in entries)
    folder, limit = (None, 0) if cache is None else (cache.folder, cache.limit)
    if json:
        print_json({"path": folder, "limit": limit, "bytes": total, "entries": [asdict(e) for e in entries]})
        return
    out = stdout_console()
    for entry in entries:
        used = datetime.fromtimestamp(entry.used, timezone.utc).strftime("%Y-%m-%d %H:%M")
        out.print(
            f"{entry.kind:10} {human_bytes(entry.nbytes):>9}  used {used}  {entry.path.name[-12:]}  "
            f"{one_line(entry.description)}",
            markup=False,
            soft_wrap=True,
        )
    where = "turned off" if folder is None else f"{folder}, at most {human_bytes(limit)}"
    out.print(f"{len(entries)} entries, {human_bytes(total)}; {where}", markup=False, soft_wrap=True)


@app.command("prune")
def prune_command(
    max_bytes: Annotated[
        int,
        typer.Option(metavar="N", min=0, help="Keep so many bytes, of the entries used last; 0 by default."),
    ] = 0,
    json: Json = False,
) -> None:
    """Remove entries, those used longest ago first."""
    cache = _cache()
    removed = [] if cache is None else cache.prune(max_bytes)
    total = sum(entry.nbytes for entry in removed)
    if json:
        print_json({"removed": [asdict(entry) for entry in removed], "bytes": total})
        return
    stdout_console().print(f"removed {len(removed)} entries, {human_bytes(total)}", markup=False)


def _cache() -> ModelCache | None:
    from nvfp4_tvm.model_cache import ModelCache

    return ModelCache.default()
