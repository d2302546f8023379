"""Tables of converting checkpoints, for ``docs/make_tables.py``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.large_models import MODELS, checkpoint_bytes
from benchmarks.markdown import markdown_table
from nvfp4_tvm.schedules.repack_kernel import Config


def convert(reports: Sequence[dict[str, Any]]) -> str:
    """Return one table a file that ``benchmarks/convert.py`` wrote."""
    parts = []
    for report in reports:
        rows = [
            [f"{row['what']}: {row['contender']}", f"{row['gb_per_s']:.2f}", f"{100 * row['of_copy']:.0f} %"]
            for row in report["rows"]
        ]
        parts.append(
            f"{where(report)}: bytes (10^9) of weights read a second, and that beside a parallel `memcpy` of the "
            "same bytes; the fastest of 15 runs in turns, of 1 where a run takes seconds or is NumPy's.\n\n"
            + markdown_table(["", "GB/s", "of memcpy"], rows)
        )
    return "\n".join(parts)


def compile_time(reports: Sequence[dict[str, Any]]) -> str:
    """Return one table a file that ``benchmarks/compile_time.py`` wrote."""
    parts = []
    for report in reports:
        runs: dict[str, dict[str, dict[str, Any]]] = {}
        for row in report["rows"]:
            runs.setdefault(f"{row['model']}, {row['target']}", {})[row["part"]] = row
        columns = list(next(iter(runs.values())))
        rows = [[name, *(f"{run[part]['seconds']:.1f}" for part in columns)] for name, run in runs.items()]
        kernels = ", ".join(str(run["NVFP4 matmuls"]["kernels"]) for run in runs.values())
        parts.append(
            f"{where(report)}: seconds to build the library of a whole model from the shipped tuning records, "
            f"with an empty kernel cache. The NVFP4 matmuls are {kernels} CUDA kernels.\n\n"
            + markdown_table(["", *columns], rows)
        )
    return "\n".join(parts)


def fuzz(reports: Sequence[dict[str, Any]]) -> str:
    """Return one table a file that ``benchmarks/fuzz.py`` wrote."""
    parts = []
    for report in reports:
        rows = [
            [f"`{row['target']}`", str(row["executions"]), str(row["seconds"]), str(row["peak_mb"])]
            for row in report["rows"]
        ]
        clean = "nothing was found" if all(row["clean"] for row in report["rows"]) else "something was found"
        parts.append(
            f"{_machine(report)}: inputs that atheris gave to each reader; {clean} in this run.\n\n"
            + markdown_table(["", "inputs", "s", "peak MB"], rows)
        )
    return "\n".join(parts)


def repack_gpu(reports: Sequence[dict[str, Any]]) -> str:
    """Return one table a file that ``benchmarks/repack_gpu.py`` wrote."""
    parts = []
    for report in reports:
        rows = [
            [
                f"{row['shape']} [{row['N']}, {row['K']}]",
                f"{row['us']:.1f}",
                f"{row['copy_us']:.1f}",
                f"{100 * row['of_copy']:.0f} %",
                f"{row['pack_us']:.0f}",
            ]
            for row in report["rows"]
            if row["config"] == asdict(Config())
        ]
        parts.append(
            f"{report['gpu']}, {report['date']}: microseconds of the repack kernel, of a copy of the "
            "same bytes on the device, and of `nvfp4_tvm.torch.pack`, which also looks at the values.\n\n"
            + markdown_table(["", "repack", "copy", "of the copy's speed", "pack"], rows)
        )
    return "\n".join(parts)


def large_models(reports: Sequence[dict[str, Any]]) -> str:
    """Return one table of all files that ``benchmarks/large_models.py`` wrote.

    Where no run has all layers of a model, the one with the most is a row, and another says what it comes to for
    all of them.
    """
    runs = [(report, row) for report in reports for row in report["rows"]]
    most: dict[tuple[str, str, str, bool], int] = {}
    for _, row in runs:
        most[_kind(row)] = max(most.get(_kind(row), 0), row["layers"])
    rows = []
    for report, row in sorted(
        runs, key=lambda run: (run[1]["command"], run[1]["of_layers"], run[1]["layers"])
    ):
        on = f" for {row['target']}" if row["command"] == "compile" and row["target"] != "llvm" else ""
        what = f"{row['command']}{on}{', from the cache' if row['again'] else ''}"
        weights = " (holes)" if row["sparse"] else ""
        some = row["layers"] < row["of_layers"]
        layers = f"{row['layers']} of {row['of_layers']} layers" if some else "all layers"
        figures = _figures(report, row, row["bytes_read"])
        rows.append([f"{row['model']}, {layers}{weights}: {what}", *figures])
        if some and most[_kind(row)] == row["layers"]:
            full = checkpoint_bytes(MODELS[row["model"]], row["of_layers"], row["command"] == "compile")
            rows.append([f"{row['model']}, extrapolated: {what}", *_figures(report, row, full)])
    machines = "; ".join(dict.fromkeys(f"{report['cpu']}, {report['cores']} cores" for report in reports))
    return (
        f"{machines}: seconds of the command, the peak memory of its process (as `/usr/bin/time -v` says, mapped "
        "files included), the day, and the load average before, of the runs before it or of other programs. Rows "
        "marked as extrapolated scale a measured time by the bytes read, "
        "and with it that of building the library, which does not grow with the layers; memory does not depend on "
        "their number. Weights that are holes in their files are read as zeros and cost no disk: reading from one "
        "comes on top.\n\n"
        + markdown_table(["", "read GB", "s", "GB/s", "peak GB", "largest layer GB", "day", "load"], rows)
    )


def _kind(row: dict[str, Any]) -> tuple[str, str, str, bool]:
    return row["model"], row["command"], row["target"], row["again"]


def where(report: dict[str, Any]) -> str:
    """Return the machine, the day, and how busy it was before."""
    return f"{_machine(report)}, load average {report['load_before']} before"


def _machine(report: dict[str, Any]) -> str:
    cores = report["cores"]
    return f"{report['cpu']}, {cores} core{'s' if cores > 1 else ''}, {report['date']}"


def _figures(report: dict[str, Any], row: dict[str, Any], nbytes: int) -> list[str]:
    seconds = row["seconds"] * nbytes / row["bytes_read"]
    return [
        f"{nbytes / 1e9:.1f}",
        f"{seconds:.1f}",
        f"{row['gb_per_s']:.2f}",
        f"{(row.get('time_v_peak_bytes') or row['peak_bytes']) / 1e9:.2f}",
        f"{row['largest_layer_bytes'] / 1e9:.2f}",
        report["date"],
        f"{row.get('load_before', report['load_before']):.1f}",
    ]
