"""From a checkpoint folder to a compiled folder: export, pack, build, write."""

from __future__ import annotations

import functools
import logging
import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import tvm
from tvm import relax

from nvfp4_tvm.arch import get_arch
from nvfp4_tvm.checkpoint import open_checkpoint
from nvfp4_tvm.checkpoint.reader import Checkpoint
from nvfp4_tvm.codegen import BuildLog, cuda_machine_code
from nvfp4_tvm.errors import NVFP4Error, TargetError
from nvfp4_tvm.integrity import file_digest
from nvfp4_tvm.model_cache import ModelCache, versions
from nvfp4_tvm.models import decoder
from nvfp4_tvm.models.config import DecoderConfig
from nvfp4_tvm.models.parameters import (
    ParamSource,
    check_tensors,
    parameter_sources,
    quantized_modules,
)
from nvfp4_tvm.models.structure import Quantized
from nvfp4_tvm.output_folder import Work, output_folder, output_key
from nvfp4_tvm.passes.fold_weights import PACKED_FIELDS
from nvfp4_tvm.passes.pipeline import target_passes, weight_passes
from nvfp4_tvm.passes.transform_params import split_transform
from nvfp4_tvm.runtime.folder import LIBRARY, MANIFEST, PARAMS, Manifest, load_params, param_digest
from nvfp4_tvm.schedules.base import MatmulProblem
from nvfp4_tvm.schedules.records import Database
from nvfp4_tvm.schedules.tuned import digest, provenance
from nvfp4_tvm.target import ResolvedTarget, resolve_target
from nvfp4_tvm.write_parameters import Plan, write_parameters

logger = logging.getLogger(__name__)

#: Called with the stage ("verify", "build", "hash", "pack"), steps done and steps in all; "pack" counts bytes.
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
        The CUDA kernels' resources; None for ``llvm``, and for a library from the cache.
    bytes_read : int
        Of the checkpoint's tensors.
    cached : tuple of str
        Which of ``library`` and ``parameters`` came from the cache.
    """

    path: Path
    manifest: Manifest
    log: BuildLog | None
    bytes_read: int
    cached: tuple[str, ...]


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
    use_cache: bool = True,
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
    use_cache : bool
        Take the library and the packed parameters from the cache if they are there, and keep them there; see
        :mod:`nvfp4_tvm.model_cache`.
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
    database = None if tuning_db is None else _database(Path(tuning_db), resolved)
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
    cache = ModelCache.default() if use_cache else None
    options = {
        "config": repr(config),
        "quantized": sorted(filter(quantized, opened.module_names())),
        "target": str(resolved.target),
        "dtype": dtype,
        "prefill_chunk_size": chunk,
        "tuning": _tuning_digest(database, resolved),
        **versions(),
    }
    key = output_key(**options, context=context, checkpoint=opened.fingerprint())
    with output_folder(output, key, replace=force) as work:
        report("build", 0, 2)

        @functools.cache
        def exported() -> tuple[tvm.IRModule, Plan]:
            return _export(config, dtype, resolved, quantized, chunk)

        log, cached, library_key = None, [], output_key(**options)
        about = None if cache is None else cache.take("library", library_key, work.path)
        if about is not None:
            cached.append("library")
        else:
            mod, plan = exported()
            report("build", 1, 2)
            with nullcontext() if database is None else database.active():
                log = _build_library(mod, resolved, work.path / LIBRARY)
                tuning = _provenance(parameter_sources(config, quantized, dtype).values(), dtype, resolved)
            about = {"param_names": list(plan.specs), "plan": plan.digest, "tuning": list(tuning)}
            if cache is not None:
                description = f"{config.model_type} for {resolved.name} in {dtype}"
                cache.put("library", library_key, [work.path / LIBRARY], about, description)
        report("build", 2, 2)
        digests, found = _parameters(opened, cache, about["plan"], lambda: exported()[1], work, report)
        if found:
            cached.append("parameters")
        host = resolved.target.host or resolved.target
        manifest = Manifest(
            target=resolved.name,
            device_type=resolved.device_type,
            dtype=dtype,
            model_type=config.model_type,
            quantized_layers=sum(
                name.endswith(f".packed.{PACKED_FIELDS[0]}") for name in about["param_names"]
            ),
            vocab_size=config.vocab_size,
            context_length=context,
            prefill_chunk_size=chunk,
            param_names=tuple(about["param_names"]),
            bos_token_id=config.bos_token_id,
            eos_token_ids=config.eos_token_ids,
            llvm_cpu=str(host.attrs.get("mcpu", "")),
            llvm_attributes=tuple(str(attribute) for attribute in host.attrs.get("mattr", ())),
            tuning=tuple(about["tuning"]),
            library_digest=file_digest(work.path / LIBRARY),
        )
        params = load_params(work.path, manifest)
        described = {name: param_digest(params[name], digests[name]) for name in manifest.param_names}
        manifest = replace(manifest, param_digests=described)
        manifest.write(work.path)
        for pattern in COPIED:
            for file in sorted(opened.path.glob(pattern)):
                shutil.copyfile(file, work.path / file.name)
    size = sum(opened.tensor_info(name).nbytes for name in opened.names())
    return CompiledModel(output, manifest, log, size, tuple(cached))


def _export(
    config: DecoderConfig, dtype: str, resolved: ResolvedTarget, quantized: Quantized, chunk: int
) -> tuple[tvm.IRModule, Plan]:
    """Return the model with packed weights, and how to pack them."""
    exported = decoder.export(
        config, dtype=dtype, target=resolved.target, quantized=quantized, prefill_chunk_size=chunk
    )
    mod = tvm.transform.Sequential(weight_passes(resolved.target))(exported.mod)
    mod, transform = split_transform(mod)
    sources = parameter_sources(config, quantized, dtype)
    return mod, Plan.make([sources[name] for name in exported.params], _weight_params(mod), transform)


def _parameters(
    checkpoint: Checkpoint,
    cache: ModelCache | None,
    plan_digest: str,
    plan: Callable[[], Plan],
    work: Work,
    report: Progress,
) -> tuple[dict[str, str], bool]:
    """Take the packed parameters from the cache, or make them.

    Returns
    -------
    tuple
        Their digests by name, and whether they came from the cache.
    """

    def packing(done: int, total: int) -> None:
        report("pack", done, total)

    if cache is None:
        return write_parameters(checkpoint, plan(), work, packing), False
    content = cache.checkpoint_digest(checkpoint, lambda done, total: report("hash", done, total))
    key = output_key(checkpoint=content, plan=plan_digest, **versions())
    found = cache.take("parameters", key, work.path)
    if found is not None:
        return found, True
    made = write_parameters(checkpoint, plan(), work, packing)
    cache.put("parameters", key, sorted(work.path.glob(f"{PARAMS}*")), made, str(checkpoint.path), made)
    return made, False


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


def _tuning_digest(database: Database | None, target: ResolvedTarget) -> str:
    """Return a digest of the databases that choose the kernels, the shipped one included."""
    if target.device_type != "cuda":
        return ""
    with nullcontext() if database is None else database.active():
        return digest(_arch(target))


def _provenance(sources: Iterable[ParamSource], dtype: str, target: ResolvedTarget) -> tuple[str, ...]:
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
