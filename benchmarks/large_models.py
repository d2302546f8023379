"""Time, speed and peak memory of converting checkpoints of a given size, in processes of their own.

    python benchmarks/large_models.py [--model 8B] [--layers 32] [--command compile] [--sparse] [--json FILE]
    python benchmarks/large_models.py --all [--results benchmarks/results]

A checkpoint with the shapes of the model is generated in a temporary folder (``--folder`` names another place) and
deleted afterwards. ``--sparse`` makes its weights holes in the files: they are read as zeros and take no room on
the disk, so that memory, and the time of everything but reading, can be measured on a small disk. ``compile`` runs
twice: the second time it finds the first in a cache made for this run. Recorded are the load average before,
and the peak memory that ``/usr/bin/time -v`` finds, where there is such a program, beside the command's own.
``--all`` does the runs of `RUNS`, which take a quarter of an hour on two idle cores, and 60 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.record import RESULTS, write  # noqa: E402
from nvfp4_tvm.checkpoint.writer import SafetensorsWriter  # noqa: E402

GIB = 2**30


@dataclass(frozen=True)
class Model:
    """Shapes of a Llama."""

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int

    def config(self, layers: int) -> dict[str, Any]:
        """Return config.json of an unquantized checkpoint."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": 128,
            "vocab_size": self.vocab,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "dtype": "bfloat16",
        }

    def linears(self, layer: int) -> dict[str, tuple[int, int]]:
        """Return the linear layers of a block: name to (N, K)."""
        q, kv = self.heads * 128, self.kv_heads * 128
        shapes = {
            "self_attn.q_proj": (q, self.hidden),
            "self_attn.k_proj": (kv, self.hidden),
            "self_attn.v_proj": (kv, self.hidden),
            "self_attn.o_proj": (self.hidden, q),
            "mlp.gate_proj": (self.inner, self.hidden),
            "mlp.up_proj": (self.inner, self.hidden),
            "mlp.down_proj": (self.hidden, self.inner),
        }
        return {f"model.layers.{layer}.{name}": shape for name, shape in shapes.items()}


#: Llama 3's shapes for 8B and 70B; 31B has the widths of Gemma's dense model of that size in a Llama.
MODELS = {
    "8B": Model(4096, 14336, 32, 32, 8, 128256),
    "31B": Model(5376, 21504, 68, 32, 16, 262144),
    "70B": Model(8192, 28672, 80, 64, 8, 128256),
}


def tensors(model: Model, layers: int, quantized: bool) -> Iterator[tuple[str, Any, tuple[int, ...]]]:
    """Yield name, dtype and shape of a checkpoint's tensors."""
    bf16 = ml_dtypes.bfloat16
    yield "model.embed_tokens.weight", bf16, (model.vocab, model.hidden)
    for layer in range(layers):
        for name, (N, K) in model.linears(layer).items():
            if quantized:
                yield f"{name}.weight_packed", np.uint8, (N, K // 2)
                yield f"{name}.weight_scale", ml_dtypes.float8_e4m3fn, (N, K // 16)
                yield f"{name}.weight_global_scale", np.float32, (1,)
            else:
                yield f"{name}.weight", bf16, (N, K)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"model.layers.{layer}.{norm}.weight", bf16, (model.hidden,)
    yield "model.norm.weight", bf16, (model.hidden,)
    yield "lm_head.weight", bf16, (model.vocab, model.hidden)


def checkpoint_bytes(model: Model, layers: int, quantized: bool) -> int:
    """Bytes of a checkpoint's tensors."""
    return sum(
        int(np.prod(shape)) * np.dtype(dtype).itemsize
        for _, dtype, shape in tensors(model, layers, quantized)
    )


def make_checkpoint(folder: Path, model: Model, layers: int, quantized: bool, sparse: bool) -> None:
    """Write a checkpoint of random weights, or of holes."""
    specs = {name: (dtype, shape) for name, dtype, shape in tensors(model, layers, quantized)}
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 0x70, 64 << 20, np.uint8)  # as E4M3 bytes: positive numbers
    with SafetensorsWriter(folder, "model", specs, {"format": "pt"}) as writer:
        for name, (dtype, shape) in specs.items():
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            if name.endswith("global_scale"):
                writer.write(name, np.full(shape, 100, np.float32))
            elif sparse and size > 1 << 20 and (quantized or "layers" not in name):
                writer.digests[name] = "a hole"
            else:
                data = np.resize(noise[int(rng.integers(1 << 20)) :], size)
                writer.write(name, data.view(dtype).reshape(shape))
    config = model.config(layers)
    if quantized:
        weights = {
            "num_bits": 4,
            "type": "float",
            "group_size": 16,
            "strategy": "tensor_group",
            "symmetric": True,
        }
        config["quantization_config"] = {
            "quant_method": "compressed-tensors",
            "format": "nvfp4-pack-quantized",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
            "ignore": ["lm_head"],
            "quantization_status": "compressed",
        }
    (folder / "config.json").write_text(json.dumps(config))


#: Model, layers, command, whether the weights are holes, target. Two checkpoints are larger than 30 GB; memory
#: must not depend on the number of layers.
RUNS = (
    ("8B", 32, "quantize", False, "llvm"),
    ("31B", 2, "quantize", False, "llvm"),
    ("31B", 30, "quantize", False, "llvm"),
    ("70B", 4, "quantize", False, "llvm"),
    ("8B", 4, "compile", True, "llvm"),
    ("8B", 32, "compile", True, "llvm"),
    ("8B", 32, "compile", True, "cuda:sm_90"),
    ("31B", 68, "compile", True, "llvm"),
    ("70B", 80, "compile", True, "llvm"),
)
TIME = Path("/usr/bin/time")


def largest_bytes(model: Model, command: str) -> int:
    """Bytes of the largest fused layer: the head in bfloat16, or a block's gate_up."""
    width = 2 if command == "quantize" else 9 / 16
    parts = 1 if command == "quantize" else 2
    return max(2 * model.vocab * model.hidden, int(parts * model.inner * model.hidden * width))


def run(command: str, source: Path, target: Path, arguments: list[str]) -> dict[str, Any]:
    """Run a command of the program and return its JSON."""
    where = [str(source), "-o", str(target)] if command == "compile" else [str(source), str(target)]
    call = [sys.executable, "-m", "nvfp4_tvm.cli.main", command, *where, "--json", *arguments]
    report = target.with_name("time.txt")
    if TIME.is_file():
        call = [str(TIME), "-v", "-o", str(report), *call]
    start = time.perf_counter()
    output = subprocess.run(call, check=True, capture_output=True, text=True).stdout
    result = json.loads(output.splitlines()[-1])
    written = result.get("bytes_written", result.get("bytes"))
    return {
        "seconds": round(result["seconds"], 2),
        "process_seconds": round(time.perf_counter() - start, 2),
        "bytes_read": result["bytes_read"],
        "bytes_written": written,
        "gb_per_s": round(result["bytes_read"] / 1e9 / result["seconds"], 3),
        "peak_bytes": result["peak_bytes"],
        "time_v_peak_bytes": _time_v_peak(report),
        "cached": list(result.get("cached", ())),
    }


def _time_v_peak(report: Path) -> int | None:
    """Return the peak memory in what ``/usr/bin/time -v`` wrote."""
    if not report.is_file():
        return None
    (kilobytes,) = re.findall(r"Maximum resident set size \(kbytes\): (\d+)", report.read_text())
    return 1024 * int(kilobytes)


def measure(
    name: str, layers: int, command: str, sparse: bool, target_name: str, folder: str | None
) -> list[dict[str, Any]]:
    """Generate a checkpoint, run the command on it, and print and return its figures."""
    model, rows = MODELS[name], []
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        source, target = Path(scratch) / "source", Path(scratch) / "target"
        os.environ["NVFP4_TVM_CACHE"] = str(Path(scratch) / "cache")
        make_checkpoint(source, model, layers, command == "compile", sparse)
        options = ["--target", target_name, "--dtype", "bfloat16"] if command == "compile" else []
        for again in (False, True) if command == "compile" else (False,):
            row = {"model": name, "layers": layers, "of_layers": model.layers, "command": command}
            row |= {"target": target_name, "sparse": sparse, "again": again}
            row |= {"load_before": round(os.getloadavg()[0], 2)}
            row |= run(command, source, target, [*options, *(["--force"] if again else [])])
            largest = largest_bytes(model, command)
            row |= {"largest_layer_bytes": largest, "allowed_bytes": 3 * largest + GIB}
            rows.append(row)
            print(row, flush=True)
    for row in rows:
        peak = max(row["peak_bytes"], row["time_v_peak_bytes"] or 0)
        assert peak < row["allowed_bytes"], f"peak memory over the bound: {row}"
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, default="8B")
    parser.add_argument("--layers", type=int, help="by default those of the model")
    parser.add_argument("--command", choices=("compile", "quantize"), default="compile")
    parser.add_argument("--target", default="llvm")
    parser.add_argument("--sparse", action="store_true")
    parser.add_argument("--folder", help="where to put the checkpoint and the output")
    parser.add_argument("--json")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where --all writes its files")
    arguments = parser.parse_args()
    if arguments.all:
        for name, layers, command, sparse, target in RUNS:
            load = round(os.getloadavg()[0], 2)
            rows = measure(name, layers, command, sparse, target, arguments.folder)
            where = "" if target == "llvm" else f"_{target.removeprefix('cuda:')}"
            file = arguments.results / f"large_models_{command}_{name.lower()}_{layers}_layers{where}.json"
            write(file, rows, load_before=load)
        return
    layers = arguments.layers or MODELS[arguments.model].layers
    load = round(os.getloadavg()[0], 2)
    rows = measure(
        arguments.model, layers, arguments.command, arguments.sparse, arguments.target, arguments.folder
    )
    if arguments.json:
        write(Path(arguments.json), rows, load_before=load)


if __name__ == "__main__":
    main()
