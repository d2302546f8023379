"""What hostile bytes are fed to: each target returns, refuses with an error of ours, or is wrong.

The tests feed them mutations of valid inputs, and `benchmarks/fuzz.py` runs them under atheris.
"""

import os
import tempfile
import time
from functools import cache
from pathlib import Path

import numpy as np

from nvfp4_tvm.arch import ARCHS
from nvfp4_tvm.checkpoint.compressed_tensors import CompressedTensors
from nvfp4_tvm.checkpoint.journal import Journal
from nvfp4_tvm.checkpoint.modelopt import ModelOpt
from nvfp4_tvm.checkpoint.patterns import MAX_MODULE_NAME, Patterns
from nvfp4_tvm.checkpoint.storage import NUMPY_DTYPES, SafetensorsFile, parse_json
from nvfp4_tvm.checkpoint.writer import SafetensorsWriter
from nvfp4_tvm.errors import NVFP4Error
from nvfp4_tvm.integrity import file_digest
from nvfp4_tvm.model_cache import ModelCache
from nvfp4_tvm.models.config import DecoderConfig
from nvfp4_tvm.runtime.folder import (
    LIBRARY,
    MANIFEST,
    PARAMS,
    Manifest,
    load_params,
    param_digest,
    verify_library,
    verify_params,
)
from nvfp4_tvm.schedules.records import Database
from nvfp4_tvm.schedules.spaces import space_of
from nvfp4_tvm.tuning import journal as tuning

# In memory where there is such a place: a case is a file or two.
_SCRATCH = tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
ROOT = Path(_SCRATCH.name)
#: Longest time that one case may take, on a machine that does other things too.
MAX_SECONDS = 10.0
MODULES = ["lm_head", "model.embed_tokens", "model.layers.0.mlp.up_proj", "a" * MAX_MODULE_NAME, "x"]


def refused(call):
    """Return what ``call`` returns, or None if it refuses as it should: in one line."""
    start = time.perf_counter()
    try:
        return call()
    except NVFP4Error as error:
        assert "\n" not in str(error) and len(str(error)) < 5000, str(error)[:200]
        return None
    finally:
        assert time.perf_counter() - start < MAX_SECONDS


def header(data):
    """Accepted tensors lie inside of the file, with the bytes that their shape asks for."""
    path = ROOT / "case.safetensors"
    path.write_bytes(data)
    file = refused(lambda: SafetensorsFile(path))
    if file is None:
        return False
    for name, info in file.tensors.items():
        assert 0 <= info.begin <= info.end <= len(data)
        if info.dtype not in NUMPY_DTYPES:
            continue
        array = file.array(name)
        assert array.nbytes == info.nbytes and array.shape == info.shape
        assert array.tobytes() == data[info.begin : info.end]
    return True


def _config(form, data):
    config = refused(lambda: parse_json(data, Path("config.json")))
    if config is None:
        return False
    folder = ROOT / "no such folder"
    if not refused(lambda: form.detect(config, folder)):
        return False
    made = refused(lambda: form(config, folder))
    if made is None:
        return False
    schemes = [refused(lambda module=module: made.scheme(module)) for module in MODULES]
    assert all(scheme is None or isinstance(scheme.kind, str) for scheme in schemes)
    assert np.float32(made.multiplier(np.float32(2))) in (2, 0.5)
    return True


def modelopt(data):
    return _config(ModelOpt, data)


def compressed_tensors(data):
    return _config(CompressedTensors, data)


def pattern(data):
    """Accepted patterns end, on the longest names and on names made to fail late."""
    text = data.decode("utf-8", "replace")
    made = refused(lambda: Patterns(["re:" + text], "config.json: ignore"))
    if made is None:
        return False
    for name in (*MODULES, "a" * (MAX_MODULE_NAME - 1) + "!", "ab" * (MAX_MODULE_NAME // 2 - 1) + "!"):
        refused(lambda name=name: made.matches(name))
    return True


def model_config(data):
    config = refused(lambda: parse_json(data, Path("config.json")))
    made = None if config is None else refused(lambda: DecoderConfig.from_hf(config))
    if made is None:
        return False
    sizes = (made.hidden_size, made.intermediate_size, made.vocab_size, made.num_hidden_layers, made.head_dim)
    assert all(type(size) is int and 0 < size < 2**31 for size in sizes)
    return True


def manifest(data):
    (ROOT / MANIFEST).write_bytes(data)
    made = refused(lambda: Manifest.read(ROOT))
    if made is None:
        return False
    assert type(made.vocab_size) is int and all(isinstance(name, str) for name in made.param_names)
    assert all(isinstance(digest, str) for digest in made.param_digests.values())
    return True


def journal(data):
    path = ROOT / "journal"
    path.write_bytes(data)
    made = Journal(path, "key")
    assert all(isinstance(name, str) and isinstance(digest, str) for name, digest in made.done.items())
    return made.resumed


def cache_entry(data):
    cache = ModelCache(ROOT / "cache")
    entry, target = cache.folder / "library-k", ROOT / "target"
    for folder in (entry, target):
        folder.mkdir(parents=True, exist_ok=True)
    (entry / "lib.so").write_bytes(b"library")
    (entry / "entry.json").write_bytes(data)
    before = sorted(ROOT.iterdir())
    found = cache.take("library", "k", target)
    assert sorted(ROOT.iterdir()) == before
    return found is not None


def tuning_database(data):
    """Accepted records are of kernels that there are, for sizes that there can be; what is written is read."""
    path = ROOT / "db.jsonl"
    path.write_bytes(data)
    made = refused(lambda: Database.read(path))
    if made is None:
        return False
    for record in made.records:
        assert 1 <= record.N < 2**31 and 16 <= record.K < 2**31 and not record.K % 16
        assert all(0 <= number < 2**31 for number in (record.time_us, record.floor_us, record.trials))
        assert space_of(record.family).legal(record.config, record.N, record.K, record.M, ARCHS[record.arch])
    path.write_text("".join(made.lines()))
    assert Database.read(path).records == made.records
    return True


def tuning_journal(data):
    path = ROOT / "journal.jsonl"
    path.write_bytes(data)
    made = refused(lambda: tuning.Journal(path, TUNING_RUN))
    if made is None:
        return False
    made.close()
    assert all(type(trial.problem.N) is int and 0 < trial.problem.N for trial in made.outcomes)
    return True


def library_folder(data):
    """The first byte says which file of a folder the rest becomes; nothing is loaded but what was compiled."""
    files = dict(compiled_folder())
    name = sorted(files)[data[0] % len(files)] if data else MANIFEST
    folder = ROOT / "folder"
    folder.mkdir(exist_ok=True)
    for each, content in files.items():
        (folder / each).write_bytes(data[1:] if each == name else content)

    def load():
        manifest = Manifest.read(folder)
        verify_library(folder, manifest)
        params = load_params(folder, manifest)
        verify_params(folder, manifest, params)
        return manifest, params

    found = refused(load)
    if found is None:
        return False
    manifest, params = found
    assert (folder / LIBRARY).read_bytes() == b"a library"
    for param in manifest.param_names:
        right = PARAMETERS[param]
        assert (params[param].dtype, params[param].shape) == (right.dtype, right.shape)
        assert params[param].tobytes() == right.tobytes()
    return True


#: What the first line of the journal in `tuning_journal` must say.
TUNING_RUN = {"arch": "sm_89"}
PARAMETERS = {"a": np.arange(64, dtype=np.uint32).reshape(4, 16), "b": np.ones(8, np.float32)}


@cache
def compiled_folder():
    """Names and contents of a compiled folder's files, its library a few bytes that nobody runs."""
    folder = ROOT / "compiled"
    with SafetensorsWriter(folder, PARAMS, {n: (p.dtype, p.shape) for n, p in PARAMETERS.items()}) as writer:
        for name, array in PARAMETERS.items():
            writer.write(name, array)
    (folder / LIBRARY).write_bytes(b"a library")
    described = {name: param_digest(PARAMETERS[name], sha) for name, sha in writer.digests.items()}
    manifest = Manifest(
        "llvm", "cpu", "float32", "llama", 3, 512, 256, 64, tuple(PARAMETERS), None, (2,),
        library_digest=file_digest(folder / LIBRARY), param_digests=described,
    )  # fmt: skip
    manifest.write(folder)
    return tuple((path.name, path.read_bytes()) for path in sorted(folder.iterdir()))


TARGETS = {
    target.__name__: target
    for target in (
        header,
        modelopt,
        compressed_tensors,
        pattern,
        model_config,
        manifest,
        journal,
        cache_entry,
        tuning_database,
        tuning_journal,
        library_folder,
    )
}
