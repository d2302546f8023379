"""Speed and peak memory of ``nvfp4-tvm quantize`` on a 2-layer, 4096-wide Llama of random bf16 weights.

    python benchmarks/quantize.py [--json benchmarks/results/quantize_NAME.json]

The checkpoint (1.3 GB) is made in a temporary folder; each run is a process of its own, so that its peak memory
is its own.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.record import write  # noqa: E402
from nvfp4_tvm.checkpoint.writer import SafetensorsWriter  # noqa: E402

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 2,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
GIB = 2**30


def shapes() -> dict[str, tuple[int, ...]]:
    hidden, inner, kv = CONFIG["hidden_size"], CONFIG["intermediate_size"], 8 * 128
    linears = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    tensors = {f"model.layers.{i}.{name}.weight": shape for i in range(2) for name, shape in linears.items()}
    vocab = CONFIG["vocab_size"]
    return tensors | {
        "model.embed_tokens.weight": (vocab, hidden),
        "lm_head.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
    }


def make_checkpoint(folder: Path) -> int:
    """Write the checkpoint and return the bytes of its largest tensor."""
    rng = np.random.default_rng(0)
    specs = {name: (ml_dtypes.bfloat16, shape) for name, shape in shapes().items()}
    with SafetensorsWriter(folder, "model", specs, {"format": "pt"}) as writer:
        for name, (dtype, shape) in specs.items():
            writer.write(name, (0.02 * rng.standard_normal(shape, np.float32)).astype(dtype))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return max(2 * int(np.prod(shape)) for shape in shapes().values())


def run_one(source: str, target: str, form: str, method: str) -> None:
    """Quantize in this process and print the figures as JSON."""
    from nvfp4_tvm.quantize import quantize_checkpoint

    summary = quantize_checkpoint(source, target, format=form, method=method)
    # Not getrusage: on Linux its maximum survives exec, so it would be that of the process that made the weights.
    status = Path("/proc/self/status").read_text()
    (peak,) = re.findall(r"VmHWM:\s*(\d+) kB", status)
    print(
        json.dumps(
            {
                "format": form,
                "method": method,
                "layers": summary.layers,
                "bytes_read": summary.bytes_read,
                "bytes_written": summary.bytes_written,
                "seconds": round(summary.seconds, 3),
                "mb_per_s": round(summary.mb_per_s, 1),
                "peak_bytes": 1024 * int(peak),
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        run_one(*arguments.one)
        return
    rows, load = [], round(os.getloadavg()[0], 2)
    with tempfile.TemporaryDirectory() as scratch:
        largest = make_checkpoint(Path(scratch) / "source")
        for form in ("compressed-tensors", "modelopt"):
            for method in ("amax", "four_over_six"):
                target = str(Path(scratch) / f"{form}-{method}")
                command = [
                    sys.executable,
                    __file__,
                    "--one",
                    str(Path(scratch) / "source"),
                    target,
                    form,
                    method,
                ]
                output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                row = json.loads(output.splitlines()[-1])
                row |= {"largest_tensor_bytes": largest, "allowed_bytes": 3 * largest + GIB}
                rows.append(row)
                print(row, flush=True)
    assert all(row["peak_bytes"] < row["allowed_bytes"] for row in rows), "peak memory over the bound"
    if arguments.json:
        write(Path(arguments.json), rows, load_before=load)


if __name__ == "__main__":
    main()
