import json
from dataclasses import replace

import numpy as np
import pytest

from nvfp4_tvm import layout, target
from nvfp4_tvm.checkpoint.writer import SafetensorsWriter
from nvfp4_tvm.errors import LibraryError, NVFP4Error
from nvfp4_tvm.integrity import file_digest
from nvfp4_tvm.runtime import folder as folder_module
from nvfp4_tvm.runtime.folder import (
    LIBRARY,
    MANIFEST,
    PARAMS,
    Manifest,
    device_of,
    load,
    load_params,
    param_digest,
)

MANIFEST_FIELDS = {
    "target": "llvm",
    "device_type": "cpu",
    "dtype": "float32",
    "model_type": "llama",
    "quantized_layers": 3,
    "vocab_size": 512,
    "context_length": 256,
    "prefill_chunk_size": 64,
    "param_names": ("a", "b"),
    "bos_token_id": None,
    "eos_token_ids": (2,),
}


@pytest.fixture
def manifest():
    return Manifest(**MANIFEST_FIELDS)


def test_manifest_round_trip(manifest, tmp_path):
    manifest.write(tmp_path)
    assert Manifest.read(tmp_path) == manifest


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("layout_version", layout.LAYOUT_VERSION + 1, "layout_version is 2, expected 1 here; compile again"),
        ("tvm_version", "0.28", "tvm_version is '0.28', expected '0.27.0.post1'"),
        ("folder_version", None, "folder_version is None, expected 3"),
        ("vocab_size", "512", "vocab_size is '512', expected int"),
        ("vocab_size", True, "vocab_size is True"),
        ("param_names", ["a", 1], "param_names is .*expected tuple"),
        ("eos_token_ids", 2, "eos_token_ids is 2"),
        ("bos_token_id", "1", "bos_token_id is '1'"),
        ("dtype", None, "dtype is None"),
        ("library_digest", 1, "library_digest is 1"),
        ("param_digests", {"a": 1}, "param_digests is .*expected Mapping"),
    ],
)
def test_a_wrong_manifest_is_refused(manifest, tmp_path, field, value, match):
    manifest.write(tmp_path)
    path = tmp_path / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(LibraryError, match=match):
        Manifest.read(tmp_path)


def test_a_missing_field_is_refused(manifest, tmp_path):
    manifest.write(tmp_path)
    raw = json.loads((tmp_path / MANIFEST).read_text())
    del raw["context_length"]
    (tmp_path / MANIFEST).write_text(json.dumps(raw))
    with pytest.raises(LibraryError, match="context_length is None, expected int"):
        Manifest.read(tmp_path)


def test_a_foreign_folder_is_refused(tmp_path):
    with pytest.raises(LibraryError, match=f"no {MANIFEST}; expected a folder written by"):
        load(tmp_path)


def test_a_missing_library_is_refused(manifest, tmp_path):
    manifest.write(tmp_path)
    with pytest.raises(LibraryError, match=f"no {LIBRARY}; compile again"):
        load(tmp_path)


@pytest.fixture
def folder(tmp_path):
    """A folder that is what its manifest says, but for the library, which is none."""
    arrays = {"a": np.arange(6, dtype=np.uint32), "b": np.ones(4, np.float32)}
    (tmp_path / LIBRARY).write_bytes(b"not a library")
    with SafetensorsWriter(tmp_path, PARAMS, {n: (a.dtype, a.shape) for n, a in arrays.items()}) as writer:
        for name, array in arrays.items():
            writer.write(name, array)
    library = file_digest(tmp_path / LIBRARY)
    digests = {name: param_digest(array, writer.digests[name]) for name, array in arrays.items()}
    Manifest(**MANIFEST_FIELDS, library_digest=library, param_digests=digests).write(tmp_path)
    return tmp_path


def test_parameters_of_another_dtype_or_shape_are_refused(folder):
    """Their bytes are the same."""
    path = folder / f"{PARAMS}.safetensors"
    data = path.read_bytes()
    for change in ((b'"U32"', b'"F32"'), (b'"shape":[6]', b'"shape":[2,3]')):
        changed = data[8:].replace(*change)
        size = int.from_bytes(data[:8], "little") + len(changed) - len(data[8:])
        path.write_bytes(size.to_bytes(8, "little") + changed)
        with pytest.raises(LibraryError, match="parameter a does not match its digest"):
            load(folder)


def test_a_broken_library_is_refused(folder):
    with pytest.raises(LibraryError, match="cannot be loaded"):
        load(folder)


def test_a_library_that_is_not_the_manifests_is_not_loaded(folder):
    (folder / LIBRARY).write_bytes(b"another library")
    for verify in (True, False):
        with pytest.raises(LibraryError, match=r"lib\.so: does not match its digest in nvfp4_tvm\.json"):
            load(folder, verify=verify)


def test_a_flipped_bit_of_a_parameter_is_found(folder):
    path = folder / f"{PARAMS}.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(LibraryError, match=r"parameter b does not match its digest .*\(1 in all differ\)"):
        load(folder)
    with pytest.raises(LibraryError, match="cannot be loaded"):  # the next thing that is wrong
        load(folder, verify=False)


def test_parameters_are_mapped_by_name(manifest, tmp_path):
    arrays = {"b": np.arange(6, dtype=np.uint32).reshape(2, 3), "a": np.ones(4, np.float32)}
    with SafetensorsWriter(tmp_path, PARAMS, {n: (a.dtype, a.shape) for n, a in arrays.items()}) as writer:
        for name, array in arrays.items():
            writer.write(name, array)
    found = load_params(tmp_path, manifest)
    assert list(found) == ["a", "b"]
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


def test_missing_parameters_are_named(manifest, tmp_path):
    with SafetensorsWriter(tmp_path, PARAMS, {"a": (np.uint32, (2,))}) as writer:
        writer.write("a", np.zeros(2, np.uint32))
    with pytest.raises(LibraryError, match=r"params lacks b \(1 missing in all\)"):
        load_params(tmp_path, manifest)


@pytest.mark.parametrize("context_length", [0, 257])
def test_a_context_that_was_not_compiled_is_refused(manifest, tmp_path, context_length):
    (tmp_path / LIBRARY).write_bytes(b"")
    replace(manifest, library_digest=file_digest(tmp_path / LIBRARY)).write(tmp_path)
    with pytest.raises(NVFP4Error, match="expected 1 to 256"):
        load(tmp_path, context_length=context_length)


def test_a_cuda_folder_without_a_gpu_is_refused(monkeypatch):
    class Absent:
        exist = False

    monkeypatch.setattr(folder_module, "load_cuda_runtime", lambda: False)
    monkeypatch.setattr(folder_module.tvm, "device", lambda *_: Absent())
    with pytest.raises(LibraryError, match="compiled for cuda:sm_89, but this machine has no NVIDIA GPU"):
        device_of(Manifest(**MANIFEST_FIELDS | {"target": "cuda:sm_89", "device_type": "cuda"}))


def test_code_for_another_processor_is_refused(monkeypatch):
    monkeypatch.setattr(target, "_linux_cpu_flags", lambda: {"sse4_2", "avx", "avx2", "fma", "f16c"})
    if not target._is_x86(str(target.llvm_get_system_triple())):
        pytest.skip("the processors of this test are x86")
    manifest = Manifest(**MANIFEST_FIELDS | {"llvm_cpu": "skylake-avx512"})
    with pytest.raises(LibraryError, match=r"compiled for the processor skylake-avx512.*lacks .*avx512f"):
        device_of(manifest)


def test_code_for_this_processor_loads(manifest):
    assert str(device_of(manifest)).startswith("cpu")
