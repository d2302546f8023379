"""``nvfp4-tvm tune``: find the fastest kernels for some weights and keep them in a database."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nvfp4_tvm.cli.output import Json, Verbose, one_line, print_json, say, stderr, stdout_console
from nvfp4_tvm.errors import NVFP4Error

if TYPE_CHECKING:
    from nvfp4_tvm.tuning.driver import Event, Tuned
    from nvfp4_tvm.tuning.runner import Device


def tune_command(
    checkpoint: Annotated[
        Path | None,
        typer.Argument(help="Folder with config.json and safetensors: tune its quantized layers."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Database to write, or to add to.")] = Path(
        "tuning.jsonl"
    ),
    shapes: Annotated[
        str | None, typer.Option(metavar="NxK,...", help="Weights to tune in place of a checkpoint's.")
    ] = None,
    m_ranges: Annotated[
        str | None,
        typer.Option(
            metavar="LOW-HIGH,...",
            help="Ranges of M with one kernel each, such as 1-8,9-64,65-; by default they are found.",
        ),
    ] = None,
    trials: Annotated[
        int, typer.Option(min=1, help="Configurations to try for each weight and range of M.")
    ] = 64,
    device: Annotated[
        str,
        typer.Option(
            "--device",  # typer 0.27 takes the name from the metavar otherwise
            metavar="DEVICE",
            help="cuda, cuda:N, or model:sm_XY to predict times where there is no such GPU.",
        ),
    ] = "cuda",
    dtype: Annotated[str, typer.Option(help="Of activations: bfloat16 or float16.")] = "bfloat16",
    epilogue: Annotated[
        str, typer.Option(help="What follows the products: plain, or such as bias+silu_mul.")
    ] = "plain",
    families: Annotated[
        str | None, typer.Option(metavar="NAME,...", help="Kernel families to search; by default all.")
    ] = None,
    near: Annotated[
        Path | None,
        typer.Option(help="Database whose configurations for the nearest shapes are tried first."),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes that compile; by default all cores.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the random part of the search.")] = 0,
    seconds: Annotated[
        float | None, typer.Option(help="Stop after so long; the same command continues.")
    ] = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Tune the kernels of some weights on a GPU; killed at any moment, the same command continues."""
    from nvfp4_tvm.schedules.records import DTYPES, Database
    from nvfp4_tvm.schedules.spaces import SPACES, space_of
    from nvfp4_tvm.tuning.build import Builder
    from nvfp4_tvm.tuning.driver import Tuner, keep_in, run_identity
    from nvfp4_tvm.tuning.journal import Journal
    from nvfp4_tvm.tuning.runner import make_runner
    from nvfp4_tvm.tuning.search import Settings, ranges_of
    from nvfp4_tvm.tuning.shapes import parse_ranges, parse_shapes, shapes_of_checkpoint
    from nvfp4_tvm.tuning.trial import problem_of

    if (checkpoint is None) == (shapes is None):
        raise NVFP4Error("tune: expected a checkpoint or --shapes, one of the two")
    if dtype not in DTYPES:
        raise NVFP4Error(f"--dtype {dtype}: expected {' or '.join(DTYPES)}")
    weights = shapes_of_checkpoint(checkpoint) if checkpoint is not None else parse_shapes(str(shapes))
    problems = [problem_of(N, K, dtype, epilogue) for N, K in weights]
    ranges = ranges_of() if m_ranges is None else parse_ranges(m_ranges)
    names = tuple(SPACES) if families is None else tuple(space_of(name).name for name in families.split(","))
    known = Database() if near is None else Database.read(near)
    keep_records = keep_in(output)  # before anything that takes time: it may refuse
    runner = make_runner(device)
    settings = Settings(trials, ranges, m_ranges is not None, seed, names, runner.device.resolution, known)
    tuned: list[Tuned] = []

    def keep(one: Tuned) -> None:
        tuned.append(one)
        keep_records(one.records(runner.device.arch, runner.device.source, runner.device.name))

    builder = Builder(runner.device.arch, jobs or os.cpu_count() or 1) if runner.compiles else None
    try:
        with (
            Journal(output.with_name(f"{output.name}.log"), run_identity(runner, settings)) as journal,
            _progress(json) as report,
        ):
            done = Tuner(runner, builder, journal, settings, report).tune(problems, keep, seconds)
    finally:
        runner.close()
        if builder is not None:
            builder.close()
    _summarize(tuned, len(problems), done, runner.device, output, json)


def _summarize(
    tuned: list[Tuned], weights: int, done: bool, device: Device, output: Path, json: bool
) -> None:
    from nvfp4_tvm.tuning.report import crossovers, gains, markdown, plot, title

    files = [output]
    if tuned:
        table, figure = output.with_suffix(".md"), output.with_suffix(".png")
        table.write_text(markdown(tuned, device))
        files.append(table)
        try:
            plot(tuned, device, figure)
            files.append(figure)
        except ImportError:
            say("warning", "no plot: matplotlib is not installed; run pip install 'nvfp4-tvm[tune]'")
    mean = gains(tuned)
    if json:
        found: list[dict[str, Any]] = [
            {
                "weight": title(one),
                "crossovers": crossovers(one),
                "records": [r.to_json() for r in one.records(device.arch, device.source, device.name)],
            }
            for one in tuned
        ]
        print_json(
            {"device": device.name, "source": device.source, "done": done, "gain": mean, "weights": found}
        )
        return
    out = stdout_console()
    state = "tuned" if done else "stopped after"
    faster = "" if mean is None else f", {mean:.3f} times the speed of the defaults"
    written = ", ".join(str(file) for file in files)
    out.print(
        f"{state} {len(tuned)} of {weights} weights, {device.source}, {one_line(device.name)}{faster}: {written}",
        markup=False,
        soft_wrap=True,
    )


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[Event], None]]:
    """Show trials done and the best so far of the weight and M at hand on stderr, on a terminal."""
    if quiet or not stderr.is_terminal:
        yield lambda event: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    best: dict[tuple[int, int, int], tuple[float, str]] = {}
    with Progress(*columns, TimeElapsedColumn(), console=stderr) as bars:
        task = bars.add_task("tune", total=None)

        def report(event: Event) -> None:
            trial = event.trial
            key = (trial.problem.N, trial.problem.K, trial.rows)
            found = (event.outcome.cost, str(trial.candidate))
            best[key] = min(best.get(key, found), found)
            time, name = best[key]
            text = f"{key[0]}x{key[1]} M={key[2]}: {time:.1f} us of {event.outcome.floor_us:.1f}, {name}"
            bars.update(task, completed=event.done, total=event.wanted, description=text)

        yield report
