"""``nvfp4-tvm``: the command line, one file a command.

The commands import TVM when they run and not before, so that help and usage errors are fast. Exit codes:
0 done; 2 the input, an option or the machine was at fault, said in one line on stderr; 130 interrupted.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Annotated

import typer

from nvfp4_tvm import __version__
from nvfp4_tvm._pins import FFI_VERSION, TVM_VERSION
from nvfp4_tvm.cli import cache
from nvfp4_tvm.cli.compile import compile_command
from nvfp4_tvm.cli.generate import generate_command
from nvfp4_tvm.cli.inspect import inspect_command
from nvfp4_tvm.cli.output import PROGRAM, Verbose, say, set_up_logging
from nvfp4_tvm.cli.quantize import quantize_command
from nvfp4_tvm.cli.tune import tune_command
from nvfp4_tvm.errors import NVFP4Error

USER_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells report it

app = typer.Typer(
    name=PROGRAM,
    help="Run NVFP4 checkpoints on GPUs without FP4 units, and on CPUs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("inspect")(inspect_command)
app.command("quantize")(quantize_command)
app.command("compile")(compile_command)
app.command("tune")(tune_command)
app.command("generate")(generate_command)
app.add_typer(cache.app, name="cache")


def _version(value: bool) -> None:
    if value:
        from nvfp4_tvm.layout import LAYOUT_VERSION

        typer.echo(
            f"{PROGRAM} {__version__} (TVM {TVM_VERSION}, tvm-ffi {FFI_VERSION}, "
            f"packed layout {LAYOUT_VERSION})"
        )
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print versions and exit.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    pass


@contextmanager
def _interruptible() -> Iterator[None]:
    """Turn whatever an interrupt has become on its way into a KeyboardInterrupt.

    TVM's passes call back into Python, and an exception that crosses its C++ comes out as a RuntimeError.
    """
    interrupted = False

    def note(signal_number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        signal.default_int_handler(signal_number, frame)

    previous = signal.signal(signal.SIGINT, note)
    try:
        yield
    except Exception:
        if interrupted:
            raise KeyboardInterrupt from None
        raise
    finally:
        signal.signal(signal.SIGINT, previous)


def main() -> None:
    """Run the command line and exit."""
    set_up_logging()
    try:
        with _interruptible():
            app(prog_name=PROGRAM)
    except NVFP4Error as error:
        say("error", error)
        sys.exit(USER_ERROR)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        say("error", f"{place}{error.strerror or error}")
        sys.exit(USER_ERROR)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
