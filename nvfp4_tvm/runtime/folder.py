"""The folder that ``compile`` writes and ``load`` reads: library, packed parameters, manifest, tokenizer.

============================  ========================================================================
``nvfp4_tvm.json``            the manifest: what was compiled, for what, with which versions
``lib.so``                    a relax VM library (on CUDA with cubin and PTX inside)
``params.safetensors``        parameters of the library's functions, NVFP4 weights packed (or shards)
``config.json``, tokenizer    as in the checkpoint
============================  ========================================================================

Loading a library is running its code: load folders you trust. The digests in the manifest tell damage and mixed-up
files, not malice: whoever can change the library can change the manifest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tvm

from nvfp4_tvm import __version__, layout
from nvfp4_tvm._pins import TVM_VERSION
from nvfp4_tvm.checkpoint.storage import open_shards, read_json
from nvfp4_tvm.codegen import load_cuda_runtime
from nvfp4_tvm.errors import LibraryError, NVFP4Error
from nvfp4_tvm.integrity import array_digest, digests, file_digest
from nvfp4_tvm.runtime.runner import Runner
from nvfp4_tvm.target import unsupported_features

MANIFEST = "nvfp4_tvm.json"
LIBRARY = "lib.so"
PARAMS = "params"
#: Version of the manifest's fields.
FOLDER_VERSION = 3


@dataclass(frozen=True)
class Manifest:
    """What a compiled folder holds.

    Attributes
    ----------
    target : str
        As ``--target`` takes it.
    device_type : str
        ``cpu`` or ``cuda``.
    dtype : str
        Of activations and plain weights.
    model_type : str
        Of the checkpoint's ``config.json``.
    quantized_layers : int
        NVFP4 layers, fused ones counted once.
    vocab_size, context_length, prefill_chunk_size : int
        In tokens.
    param_names : tuple of str
        Weight arguments of the library's functions, in order.
    bos_token_id : int or None
        The token that starts a text.
    eos_token_ids : tuple of int
        Tokens that end a text.
    llvm_cpu : str
        LLVM's name of the processor the host code was compiled for.
    llvm_attributes : tuple of str
        LLVM attributes it was compiled with.
    tuning : tuple of str
        What chose the CUDA kernels of NVFP4 layers: records ``measured`` on a device or ``predicted`` for one,
        or the families' own models.
    library_digest : str
        SHA-256 of the library, in hexadecimal.
    param_digests : mapping of str to str
        Dtype, shape and SHA-256 of each parameter, see `param_digest`.
    folder_version, layout_version : int
        Versions of this file and of the packed layout.
    package_version, tvm_version : str
        What compiled the folder.
    """

    target: str
    device_type: str
    dtype: str
    model_type: str
    quantized_layers: int
    vocab_size: int
    context_length: int
    prefill_chunk_size: int
    param_names: tuple[str, ...]
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    llvm_cpu: str = ""
    llvm_attributes: tuple[str, ...] = ()
    tuning: tuple[str, ...] = ()
    library_digest: str = ""
    param_digests: Mapping[str, str] = field(default_factory=dict)
    folder_version: int = FOLDER_VERSION
    layout_version: int = layout.LAYOUT_VERSION
    package_version: str = __version__
    tvm_version: str = TVM_VERSION

    def write(self, folder: Path) -> None:
        """Write :data:`MANIFEST` into ``folder``."""
        (folder / MANIFEST).write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read and check the manifest of ``folder``.

        Raises
        ------
        LibraryError
            If the folder holds none, a field is missing or of the wrong type, or a version differs.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise LibraryError(f"{folder}: no {MANIFEST}; expected a folder written by `nvfp4-tvm compile`")
        raw = read_json(path)
        for name, expected in (
            ("folder_version", FOLDER_VERSION),
            ("layout_version", layout.LAYOUT_VERSION),
            ("tvm_version", TVM_VERSION),
        ):
            if raw.get(name) != expected:
                raise LibraryError(
                    f"{path}: {name} is {raw.get(name)!r:.80}, expected {expected!r} here; compile again"
                )
        kinds = {
            "int": int,
            "str": str,
            "tuple[str, ...]": list,
            "tuple[int, ...]": list,
            "Mapping[str, str]": dict,
        }
        values: dict[str, Any] = {}
        for entry in fields(cls):
            value: Any = raw.get(entry.name)
            kind = kinds.get(str(entry.type))
            allowed = (int, type(None)) if kind is None else (kind,)  # None: a field of type "int | None"
            wrong = type(value) not in allowed
            if kind is list and not wrong:
                item = str if "str" in str(entry.type) else int
                wrong = any(type(each) is not item for each in value)
            if kind is dict and not wrong:
                wrong = any(type(each) is not str for each in value.values())
            if wrong:
                raise LibraryError(
                    f"{path}: {entry.name} is {value!r:.80}, expected {entry.type}; compile again"
                )
            values[entry.name] = tuple(value) if kind is list else value
        return cls(**values)


def load_params(folder: Path, manifest: Manifest) -> Mapping[str, np.ndarray]:
    """Map the packed parameters into memory.

    Raises
    ------
    LibraryError
        If a parameter of the manifest is missing.
    """
    owner = open_shards(folder, PARAMS)
    missing = [name for name in manifest.param_names if name not in owner]
    if missing:
        raise LibraryError(
            f"{folder}: {PARAMS} lacks {missing[0]} ({len(missing)} missing in all); compile again"
        )
    return {name: owner[name].array(name) for name in manifest.param_names}


def param_digest(param: np.ndarray, digest: str) -> str:
    """Return what a manifest says of a parameter: what its bytes are to be read as, and their SHA-256."""
    return f"{param.dtype}{list(param.shape)} {digest}"


def verify_library(folder: Path, manifest: Manifest) -> None:
    """Check that the library is the one that the manifest was written for.

    Raises
    ------
    LibraryError
        If there is none, or its digest differs.
    """
    path = folder / LIBRARY
    if not path.is_file():
        raise LibraryError(f"{folder}: no {LIBRARY}; compile again")
    if file_digest(path) != manifest.library_digest:
        raise LibraryError(
            f"{path}: does not match its digest in {MANIFEST}: it was changed, or belongs to another compilation, "
            "and is not loaded; compile again"
        )


def verify_params(folder: Path, manifest: Manifest, params: Mapping[str, np.ndarray]) -> None:
    """Check the packed parameters against the manifest.

    Raises
    ------
    LibraryError
        Naming the first parameter whose digest differs.
    """
    found = digests({name: partial(array_digest, array) for name, array in params.items()})
    wrong = [
        name
        for name, array in params.items()
        if param_digest(array, found[name]) != manifest.param_digests.get(name)
    ]
    if wrong:
        raise LibraryError(
            f"{folder}: parameter {wrong[0]} does not match its digest in {MANIFEST} ({len(wrong)} in all "
            "differ): the file is damaged; compile again"
        )


def device_of(manifest: Manifest) -> tvm.runtime.Device:
    """Return the device that a folder runs on.

    Raises
    ------
    LibraryError
        If it needs a GPU and there is none, or instructions that this machine's processor lacks.
    """
    lacking = unsupported_features(manifest.llvm_cpu, manifest.llvm_attributes)
    if lacking:
        raise LibraryError(
            f"compiled for the processor {manifest.llvm_cpu}, but this one lacks {', '.join(lacking)}; "
            f"compile on this machine, or with --target 'llvm -mcpu=...' for it"
        )
    if manifest.device_type == "cuda":
        load_cuda_runtime()
    device = tvm.device(manifest.device_type, 0)
    if manifest.device_type != "cpu" and not device.exist:
        raise LibraryError(
            f"compiled for {manifest.target}, but this machine has no NVIDIA GPU or driver; "
            f"compile with --target llvm to run here"
        )
    return device


def load(folder: str | Path, *, context_length: int | None = None, verify: bool = True) -> Runner:
    """Load a compiled folder.

    Parameters
    ----------
    folder : str or Path
        Output of :func:`nvfp4_tvm.compile`. Its library is executed: load folders you trust.
    context_length : int, optional
        Tokens of KV cache to allocate, at most what was compiled.
    verify : bool
        Compare the parameters with the digests in the manifest, which reads all of them. The library is compared
        in any case.

    Returns
    -------
    Runner
        With ``logits(token_ids)`` and ``generate(...)``.

    Raises
    ------
    LibraryError
        If the folder is incomplete, damaged, of another version, or for a device that is not here.
    """
    folder = Path(folder)
    manifest = Manifest.read(folder)
    verify_library(folder, manifest)
    if context_length is not None and not 1 <= context_length <= manifest.context_length:
        raise NVFP4Error(
            f"context_length is {context_length}, expected 1 to {manifest.context_length} (as compiled)"
        )
    metadata = asdict(manifest) | {"context_length": context_length or manifest.context_length}
    device = device_of(manifest)
    params = load_params(folder, manifest)
    if verify:
        verify_params(folder, manifest, params)
    return Runner(folder / LIBRARY, params, metadata, device)
