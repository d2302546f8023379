import json

import ml_dtypes
import numpy as np
import pytest
import raw_checkpoints as rc
from raw_checkpoints import Raw, raw

from nvfp4_tvm.checkpoint.storage import NUMPY_DTYPES, SafetensorsFile, open_shards, parse_json, read_json
from nvfp4_tvm.errors import CheckpointError, UnsupportedFormatError


def test_every_dtype(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {s: rng.integers(0, 2, 24, np.uint8).view(d).reshape(-1, 1) for s, d in NUMPY_DTYPES.items()}
    tensors = {s: Raw(s, list(a.shape), a.tobytes()) for s, a in arrays.items()}
    (tmp_path / "x.safetensors").write_bytes(rc.safetensors_bytes(tensors))
    file = SafetensorsFile(tmp_path / "x.safetensors")
    for spelling, want in arrays.items():
        got = file.array(spelling)
        assert got.dtype == want.dtype and got.shape == want.shape
        assert got.tobytes() == want.tobytes()


def test_unaligned_and_empty_and_scalar(tmp_path):
    tensors = {
        "one": raw(np.array([7], np.uint8)),
        "odd": raw(np.arange(5, dtype=np.float32)),
        "none": raw(np.zeros((0, 3), ml_dtypes.bfloat16)),
        "scalar": raw(np.float32(2.5)),
    }
    (tmp_path / "x.safetensors").write_bytes(rc.safetensors_bytes(tensors))
    file = SafetensorsFile(tmp_path / "x.safetensors")
    assert file.tensors["odd"].begin % 4
    np.testing.assert_array_equal(file.array("odd"), np.arange(5, dtype=np.float32))
    assert file.array("odd").flags.aligned and not file.array("odd").flags.writeable
    assert file.array("none").shape == (0, 3)
    assert file.array("scalar") == np.float32(2.5) and file.array("scalar").shape == ()
    file.release("one")


def test_a_view_not_a_copy(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(rc.safetensors_bytes({"a": raw(np.zeros(1 << 20, np.uint8))}))
    file = SafetensorsFile(tmp_path / "x.safetensors")
    assert np.shares_memory(file.array("a"), file.array("a"))


def test_dtype_without_numpy_counterpart(tmp_path):
    body = rc.safetensors_bytes({"a": Raw("F4", [4], b"ab")})
    (tmp_path / "x.safetensors").write_bytes(body)
    file = SafetensorsFile(tmp_path / "x.safetensors")
    with pytest.raises(UnsupportedFormatError, match="F4"):
        file.array("a")


def test_metadata(tmp_path):
    header, _ = rc.header_of({"a": raw(np.zeros(4, np.uint8))})
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    (tmp_path / "x.safetensors").write_bytes(rc.safetensors_bytes({"a": raw(np.zeros(4, np.uint8))}, text))
    assert SafetensorsFile(tmp_path / "x.safetensors").metadata == {"format": "pt"}


def test_shrunk_while_open(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(rc.safetensors_bytes({"a": raw(np.zeros(1 << 16, np.uint8))}))
    file = SafetensorsFile(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="shorter"):
        file.array("a")


def test_open_shards_prefers_the_single_file(tmp_path):
    rc.write(tmp_path, "modelopt", files=[("model.safetensors.index.json", {"weight_map": {"x": "gone"}})])
    assert {f.path.name for f in open_shards(tmp_path).values()} == {"model.safetensors"}


def test_open_shards_takes_a_lone_file(tmp_path):
    (rc.write(tmp_path, "modelopt") / "model.safetensors").rename(tmp_path / "other.safetensors")
    assert {f.path.name for f in open_shards(tmp_path).values()} == {"other.safetensors"}


def test_shards_may_be_links_out_of_the_folder(tmp_path):
    blob = tmp_path / "blobs" / "abc"
    blob.parent.mkdir()
    folder = rc.write(tmp_path / "snapshot", "modelopt")
    (folder / "model.safetensors").rename(blob)
    (folder / "model.safetensors").symlink_to(blob)
    assert open_shards(folder)


def test_json(tmp_path):
    (tmp_path / "a.json").write_text('{"a": [1, 2.5, "x", null], "b": {}}')
    assert read_json(tmp_path / "a.json") == {"a": [1, 2.5, "x", None], "b": {}}
    assert parse_json(b"{}", tmp_path) == {}
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_json(tmp_path / "b.json")
