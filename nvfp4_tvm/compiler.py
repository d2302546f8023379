"""From a checkpoint folder to a compiled folder: export, pack, build, write."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes  # noqa: F401  makes bfloat16 a name that NumPy knows
import numpy as np
import tvm
from tvm import relax

from nvfp4_tvm.arch import get_arch
from nvfp4_tvm.checkpoint import open_checkpoint
from nvfp4_tvm.checkpoint.reader import Checkpoint
from nvfp4_tvm.checkpoint.writer import SafetensorsWriter
from nvfp4_tvm.codegen import BuildLog, cuda_machine_code
from nvfp4_tvm.errors import NVFP4Error, TargetError
from nvfp4_tvm.models import decoder
from nvfp4_tvm.models.config import DecoderConfig
from nvfp4_tvm.models.parameters import (
    ParamSource,
    check_tensors,
    load_parameter,
    parameter_sources,
    quantized_modules,
)
from nvfp4_tvm.packing import build_transform, run_transform, split_transform
from nvfp4_tvm.passes.pipeline import target_passes, weight_passes
from nvfp4_tvm.runtime.folder import LIBRARY, MANIFEST, PARAMS, Manifest
from nvfp4_tvm.schedules.base import MatmulProblem
from nvfp4_tvm.schedules.records import Database
from nvfp4_tvm.schedules.tuned import provenance
from nvfp4_tvm.target import ResolvedTarget, resolve_target

logger = logging.getLogger(__name__)

#: Called with the stage ("verify", "build", "pack"), steps done and steps in all.
Progress = Callable[[str, int, int], None]

#: KV cache to plan for where the model allows more; 8192 tokens of an 8B model take 1 GiB in 16 bits.
DEFAULT_CONTEXT_LENGTH = 8192
#: Tokens of a prompt processed at once: bounds the memory of activations.
DEFAULT_PREFILL_CHUNK = 2048
#: Files a tokenizer and a user need beside the weights.
COPIED = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "vocab.*",
    "merges.txt",
)


@dataclass(frozen=True)
class CompiledModel:
    """What :func:`compile` made.

    Attributes
    ----------
    path : Path
        The folder.
    manifest : Manifest
        Its manifest.
    log : BuildLog or None
        The CUDA kernels' resources; None for ``llvm``.
    """

    path: Path
    manifest: Manifest
    log: BuildLog | None


def compile(
    checkpoint: str | Path,
    output: str | Path,
    *,
    target: str = "auto",
    dtype: str | None = None,
    context_length: int | None = None,
    prefill_chunk_size: int | None = None,
    tuning_db: str | Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> CompiledModel:
    """Compile an NVFP4 (or unquantized) checkpoint into a folder that :func:`nvfp4_tvm.load` runs.

    Parameters
    ----------
    checkpoint : str or Path
        Folder with ``config.json`` and safetensors.
    output : str or Path
        Folder to create. It appears complete or not at all.
    target : str
        ``llvm``, ``cuda:sm_80``, ``cuda:sm_86``, ``cuda:sm_89``, ``cuda:sm_90``, or ``auto`` for the GPU of
        this machine, else its CPU.
    dtype : str, optional
        Of activations and plain weights. Default: float32 for ``llvm``; for CUDA that of the checkpoint.
    context_length : int, optional
        Longest text in tokens. Default: that of the model, at most 8192.
    prefill_chunk_size : int, optional
        Tokens of a prompt processed at once. Default: 2048, at most the context.
    tuning_db : str or Path, optional
        Database of ``nvfp4-tvm tune`` that chooses CUDA kernels, before the one that is shipped.
    force : bool
        Replace ``output`` if it is a compiled folder.
    progress : callable, optional
        See :data:`Progress`.

    Raises
    ------
    NVFP4Error
        If the checkpoint is malformed or unsupported, an option is out of range, or the output exists.
    TargetError
        If the target is not supported, or something to compile or link with is missing.
    """
    output = Path(output)
    resolved = resolve_target(target)
    database = nullcontext() if tuning_db is None else _database(Path(tuning_db), resolved).active()
    opened = open_checkpoint(checkpoint)
    config = DecoderConfig.from_hf(opened.config)
    longest = config.max_position_embeddings
    context = _bounded("context_length", context_length, DEFAULT_CONTEXT_LENGTH, longest)
    chunk = _bounded("prefill_chunk_size", prefill_chunk_size, DEFAULT_PREFILL_CHUNK, context)
    dtype = dtype or _default_dtype(opened, resolved)
    _check_output(output, force)
    _check_linker()
    report = progress or (lambda stage, done, total: None)

    report("verify", 0, 1)
    opened.verify()
    check_tensors(opened, config)
    report("verify", 1, 1)

    quantized = quantized_modules(opened)
    report("build", 0, 2)
    exported = decoder.export(
        config, dtype=dtype, target=resolved.target, quantized=quantized, prefill_chunk_size=chunk
    )
    mod = tvm.transform.Sequential(weight_passes(resolved.target))(exported.mod)
    mod, transform = split_transform(mod)
    packed = _weight_params(mod)
    sources = list(parameter_sources(config, quantized, dtype).values())
    by_name = {source.name: source for source in sources}
    canonical = [by_name[name] for name in exported.params]
    report("build", 1, 2)

    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as scratch:
        work = Path(scratch) / output.name
        work.mkdir()
        with database:
            log = _build_library(mod, resolved, work / LIBRARY)
            tuning = _provenance(sources, dtype, resolved)
        report("build", 2, 2)
        _write_params(opened, canonical, packed, transform, work, report)
        host = resolved.target.host or resolved.target
        manifest = Manifest(
            target=resolved.name,
            device_type=resolved.device_type,
            dtype=dtype,
            model_type=config.model_type,
            quantized_layers=sum(source.field == "codes" for source in sources),
            vocab_size=config.vocab_size,
            context_length=context,
            prefill_chunk_size=chunk,
            param_names=tuple(packed),
            bos_token_id=config.bos_token_id,
            eos_token_ids=config.eos_token_ids,
            llvm_cpu=str(host.attrs.get("mcpu", "")),
            llvm_attributes=tuple(str(attribute) for attribute in host.attrs.get("mattr", ())),
            tuning=tuning,
        )
        manifest.write(work)
        for pattern in COPIED:
            for file in sorted(opened.path.glob(pattern)):
                shutil.copyfile(file, work / file.name)
        if output.exists():
            shutil.rmtree(output)
        work.rename(output)
    return CompiledModel(output, manifest, log)


def _database(path: Path, target: ResolvedTarget) -> Database:
    """Read the database that is to choose the kernels."""
    if target.device_type != "cuda":
        raise NVFP4Error(f"{path}: holds records of CUDA kernels, the target is {target.name}; leave it out")
    database, arch = Database.read(path), _arch(target)
    if all(record.arch != arch for record in database.records):
        raise NVFP4Error(f"{path}: has no records for {arch}; tune on such a GPU, or leave it out")
    return database


def _arch(target: ResolvedTarget) -> str:
    return get_arch(str(target.target.attrs["arch"])).name


def _provenance(sources: Sequence[ParamSource], dtype: str, target: ResolvedTarget) -> tuple[str, ...]:
    """Say where the records that chose the kernels of quantized layers are from."""
    if target.device_type != "cuda":
        return ()
    shapes = {(source.shape[0], 2 * source.shape[1]) for source in sources if source.field == "codes"}
    return provenance([MatmulProblem(N, K, x_dtype=dtype) for N, K in sorted(shapes)], _arch(target))


def _bounded(name: str, value: int | None, default: int, limit: int) -> int:
    if value is None:
        return min(default, limit)
    if not 1 <= value <= limit:
        raise NVFP4Error(f"{name} is {value}, expected 1 to {limit}")
    return value


def _default_dtype(checkpoint: Checkpoint, target: ResolvedTarget) -> str:
    if target.device_type == "cpu":
        return "float32"
    stored = checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype")
    return stored if stored in ("float16", "bfloat16") else "bfloat16"


def _check_output(output: Path, force: bool) -> None:
    if not output.exists():
        return
    if output.is_dir() and not any(output.iterdir()):
        return
    if not force:
        raise NVFP4Error(f"{output}: exists; choose another output or pass --force to replace it")
    if not (output / MANIFEST).is_file():
        raise NVFP4Error(f"{output}: is no compiled folder (no {MANIFEST}), so --force does not replace it")


def _check_linker() -> None:
    if os.environ.get("CXX") is None and not any(shutil.which(cxx) for cxx in ("g++", "clang++", "c++")):
        raise TargetError("no C++ compiler to link the library with; install g++ or clang++, or set CXX")


def _weight_params(mod: tvm.IRModule) -> dict[str, relax.TensorType]:
    """Return the weight parameters that the model's functions take, in order."""
    function = mod[decoder.MODEL_FUNCTIONS[0]]
    return {param.name: param.ty for param in function.params[int(function.attrs["num_input"]) :]}


def build(mod: tvm.IRModule, target: ResolvedTarget) -> tuple[relax.VMExecutable, BuildLog | None]:
    """Lower a module with packed weights and build it, on CUDA to cubin and PTX.

    Returns
    -------
    tuple
        The executable, and the CUDA build's log (None for ``llvm``).
    """
    code = nullcontext() if target.code_arch is None else cuda_machine_code(target.code_arch)
    with code as log, target.target:
        lowered = tvm.transform.Sequential(target_passes(target.target, log))(mod)
        return relax.build(lowered, target.target, relax_pipeline=None), log


def _build_library(mod: tvm.IRModule, target: ResolvedTarget, path: Path) -> BuildLog | None:
    executable, log = build(mod, target)
    export(executable, path)
    return log


def export(executable: relax.VMExecutable, path: Path) -> None:
    """Link an executable into a shared library.

    Raises
    ------
    TargetError
        If there is no C++ compiler to link with.
    """
    _check_linker()
    executable.export_library(str(path))


def _write_params(
    checkpoint: Checkpoint,
    canonical: list[ParamSource],
    packed: Mapping[str, relax.TensorType],
    transform: tvm.IRModule | None,
    folder: Path,
    report: Progress,
) -> None:
    """Stream the parameters from the checkpoint through ``transform_params`` into ``folder``."""
    names = list(packed)
    specs = {
        name: (np.dtype(str(ty.dtype)), tuple(int(extent) for extent in ty.shape))
        for name, ty in packed.items()
    }
    report("pack", 0, len(names))
    with SafetensorsWriter(folder, PARAMS, specs) as writer:
        done = 0

        def put(index: int, value: np.ndarray) -> None:
            nonlocal done
            writer.write(names[index], value)
            done += 1
            report("pack", done, len(names))

        def get(index: int) -> np.ndarray:
            return load_parameter(checkpoint, canonical[index])

        if transform is None:
            for index in range(len(canonical)):
                put(index, get(index))
        else:
            run_transform(build_transform(transform, resolve_target("llvm").target), get, put)
