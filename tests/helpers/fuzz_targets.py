"""What hostile bytes are fed to: each target returns, refuses with an error of ours, or is wrong.

``python tests/helpers/fuzz_targets.py TARGET [libFuzzer options]`` runs one of them under atheris, if that is
installed; the tests feed them mutations of valid inputs.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from nvfp4_tvm.checkpoint.compressed_tensors import CompressedTensors
from nvfp4_tvm.checkpoint.journal import Journal
from nvfp4_tvm.checkpoint.modelopt import ModelOpt
from nvfp4_tvm.checkpoint.patterns import MAX_MODULE_NAME, Patterns
from nvfp4_tvm.checkpoint.storage import NUMPY_DTYPES, SafetensorsFile, parse_json
from nvfp4_tvm.errors import NVFP4Error
from nvfp4_tvm.model_cache import ModelCache
from nvfp4_tvm.models.config import DecoderConfig
from nvfp4_tvm.runtime.folder import MANIFEST, Manifest

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
    )
}


def main():
    import atheris

    target = TARGETS[sys.argv.pop(1)]
    atheris.instrument_all()
    atheris.Setup(sys.argv, lambda data: target(data) and None)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
