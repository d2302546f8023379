"""How long building a model's library takes, and how that splits.

    python benchmarks/compile_time.py [--model 8B] [--targets cuda:sm_90] [--json FILE]

The library of a whole model, as ``nvfp4-tvm compile`` builds it from the shipped tuning records: every projection
NVFP4, the head in 16 bits, prompts up to 2048 tokens at once. No weights are needed, and none are packed
(`benchmarks/large_models.py` has the whole command). Kernels are compiled from nothing: the kernel cache is a new
folder. Seconds of wall time and of processor time.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tvm
from tvm import relax

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.large_models import MODELS  # noqa: E402
from benchmarks.record import write  # noqa: E402
from nvfp4_tvm.codegen import cuda_machine_code  # noqa: E402
from nvfp4_tvm.compiler import DEFAULT_PREFILL_CHUNK, export  # noqa: E402
from nvfp4_tvm.models import decoder  # noqa: E402
from nvfp4_tvm.models.config import DecoderConfig  # noqa: E402
from nvfp4_tvm.passes.lower_matmul import LowerNVFP4Matmul  # noqa: E402
from nvfp4_tvm.passes.pipeline import target_passes, weight_passes  # noqa: E402
from nvfp4_tvm.passes.transform_params import split_transform  # noqa: E402
from nvfp4_tvm.target import resolve_target  # noqa: E402

Row = dict[str, Any]


@contextmanager
def _timed(rows: list[Row], part: str) -> Iterator[None]:
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    rows.append(
        {
            "part": part,
            "seconds": round(time.perf_counter() - wall, 2),
            "cpu_seconds": round(time.process_time() - cpu, 2),
        }
    )
    print(rows[-1], flush=True)


def measure(model: str, target: str, dtype: str, folder: Path) -> Iterator[Row]:
    """Build the library of a model into a folder; yield the time of each part, and of all of them."""
    rows: list[Row] = []
    resolved, shape = resolve_target(target), MODELS[model]
    assert resolved.code_arch is not None, f"{target}: expected a CUDA target"
    config = DecoderConfig.from_hf(shape.config(shape.layers))
    with _timed(rows, "all"):
        with _timed(rows, "model in Relax"):
            exported = decoder.export(
                config, dtype=dtype, target=resolved.target, quantized=lambda name: name != "lm_head",
                prefill_chunk_size=DEFAULT_PREFILL_CHUNK,
            )  # fmt: skip
        with _timed(rows, "weights and epilogues"):
            mod = tvm.transform.Sequential(weight_passes(resolved.target))(exported.mod)
            mod, _ = split_transform(mod)
        with cuda_machine_code(resolved.code_arch) as log, resolved.target:
            first, *others = target_passes(resolved.target, log)
            assert first.info.name == "LowerNVFP4Matmul", first.info
            with _timed(rows, "NVFP4 matmuls"):
                mod = LowerNVFP4Matmul(resolved.target, log)(mod)
            rows[-1]["kernels"] = len(log.usage)
            ours = 1 + [step.info.name for step in others].index("LowerDense")
            with _timed(rows, "unquantized layers"):
                mod = tvm.transform.Sequential(others[:ours])(mod)
            with _timed(rows, "TVM's passes"):
                mod = tvm.transform.Sequential(others[ours:])(mod)
            with _timed(rows, "other kernels, host code"):
                executable = relax.build(mod, resolved.target, relax_pipeline=None)
        with _timed(rows, "link"):
            export(executable, folder / "lib.so")
    yield from ({"model": model, "target": target, "dtype": dtype, **row} for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, default="8B")
    parser.add_argument("--targets", default="cuda:sm_90,cuda:sm_89,cuda:sm_80")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    load = round(os.getloadavg()[0], 2)
    rows: list[Row] = []
    for target in arguments.targets.split(","):
        with tempfile.TemporaryDirectory() as folder:
            os.environ["NVFP4_TVM_CACHE"] = str(Path(folder) / "cache")
            print(f"{arguments.model}, {target}", flush=True)
            rows += measure(arguments.model, target, arguments.dtype, Path(folder))
    if arguments.json:
        write(arguments.json, rows, load_before=load)


if __name__ == "__main__":
    main()
