"""Compile MLC-LLM's Llama for the decode benchmark, once for each quantization: no GPU, no checkpoint.

MLC's Python is found by the environment variables ``MLC_LLM_SOURCE`` (a checkout of mlc-llm) and, where it does
not run on the pinned TVM by itself, ``MLC_LLM_SHIM``: a Python file whose ``apply(folder)`` makes
``folder/mlc_llm`` importable. Every library is written as ``NAME.so.xz`` with a description ``NAME.json`` beside
it.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import lzma
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shape:
    """Dimensions of a Llama, and what a library is compiled for."""

    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int = 128
    vocab_size: int = 128256
    rms_norm_eps: float = 1e-5
    position_embedding_base: int = 500000
    context_window_size: int = 4096
    prefill_chunk_size: int = 2048
    max_batch_size: int = 64


SHAPES = {
    "llama-3-8b": Shape(),
    "tiny": Shape(256, 512, 2, 4, 2, 64, 512, 1e-5, 10000, 256, 64, 4),
}


@dataclass(frozen=True)
class Variant:
    """A library: a quantization of MLC's registry, with another head or without CUDA graphs."""

    name: str
    quantization: str
    quantize_final_fc: bool | None = None
    cuda_graph: bool = True


#: In the order in which they are measured. q4f16_1 quantizes the head; checkpoints of ModelOpt usually do not.
VARIANTS = (
    Variant("nvfp4_skel_head", "nvfp4_skel", quantize_final_fc=True),
    Variant("q4f16_1", "q4f16_1"),
    Variant("q0f16", "q0f16"),
    Variant("nvfp4_skel", "nvfp4_skel"),
    Variant("nvfp4_skel_no_graph", "nvfp4_skel", cuda_graph=False),
    Variant("nvfp4_skel_f16_head", "nvfp4_skel_f16", quantize_final_fc=True),
    Variant("q0bf16", "q0bf16"),
)


def import_mlc() -> str:
    """Make ``mlc_llm`` importable and return the commit of its checkout."""
    source = os.environ.get("MLC_LLM_SOURCE")
    if source is None:
        sys.exit("MLC_LLM_SOURCE is not set; set it to a checkout of mlc-llm")
    shim = os.environ.get("MLC_LLM_SHIM")
    if shim is None:
        sys.path.insert(0, str(Path(source) / "python"))
    else:
        spec = importlib.util.spec_from_file_location("mlc_llm_shim", shim)
        assert spec is not None and spec.loader is not None, shim
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.apply(str(Path(source) / "python"))
    command = ["git", "-C", source, "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"


def build(variant: Variant, shape: Shape, target_hint: str, folder: Path, commit: str) -> dict[str, Any]:
    """Compile one library with MLC's own entry point; return its description."""
    from mlc_llm.interface.compile import compile as mlc_compile
    from mlc_llm.interface.compiler_flags import ModelConfigOverride, OptimizationFlags
    from mlc_llm.model import MODELS
    from mlc_llm.quantization import QUANTIZATION
    from mlc_llm.support.auto_target import detect_target_and_host

    quantization = QUANTIZATION[variant.quantization]
    if variant.quantize_final_fc is not None:
        quantization = replace(quantization, quantize_final_fc=variant.quantize_final_fc)
    target, build_func = detect_target_and_host(target_hint)
    if target.kind.name == "cuda":
        from nvfp4_tvm.codegen.cuda_runtime import ensure_cuda_codegen

        ensure_cuda_codegen()  # machine code in every library, not source for NVRTC to compile when it is loaded
        # A host of the triple alone: the machine with the GPU need not have this one's processor
        target, build_func = detect_target_and_host(target_hint, str(target.host.attrs["mtriple"]))
    opt = replace(OptimizationFlags.from_str("O2"))  # the default of `mlc_llm compile`
    opt.cudagraph = variant.cuda_graph
    library = folder / f"{variant.name}.so"
    start = time.perf_counter()
    mlc_compile(
        {"model_config": asdict(shape), "tensor_parallel_shards": 1},
        quantization,
        MODELS["llama"],
        target,
        opt,
        build_func,
        system_lib_prefix="",
        output=library,
        overrides=ModelConfigOverride(),
    )
    seconds = time.perf_counter() - start
    subprocess.run(["strip", "--strip-unneeded", str(library)], check=True)
    data = library.read_bytes()
    library.with_suffix(".so.xz").write_bytes(lzma.compress(data, preset=9))
    library.unlink()
    described = {
        **asdict(variant),
        "model_dtype": quantization.model_dtype,
        "shape": asdict(shape),
        "target": str(target),
        "opt": repr(opt),
        "mlc_llm": commit,
        "compile_seconds": round(seconds, 1),
        "library_bytes": len(data),
    }
    (folder / f"{variant.name}.json").write_text(json.dumps(described, indent=1) + "\n")
    return described


def build_all(names: list[str], shape: Shape, target: str, folder: Path) -> None:
    """Compile the named variants, or all; each in turn, in this process."""
    folder.mkdir(parents=True, exist_ok=True)
    commit = import_mlc()
    import nvfp4_tvm.mlc  # noqa: F401  activates the plug-in

    for variant in VARIANTS:
        if not names or variant.name in names:
            described = build(variant, shape, target, folder, commit)
            seconds, size = described["compile_seconds"], described["library_bytes"]
            print(f"{variant.name}: {seconds} s, {size} bytes", flush=True)
