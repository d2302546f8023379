import json

import ml_dtypes
import numpy as np
import pytest
import safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nvfp4_tvm.checkpoint.storage import NUMPY_DTYPES, SafetensorsFile, open_shards
from nvfp4_tvm.checkpoint.writer import SafetensorsWriter
from nvfp4_tvm.errors import OutputError, ShapeError

ARRAYS = {
    "W": np.arange(2 * 3 * 2 * 32 * 4, dtype=np.uint32).reshape(2, 3, 2, 32, 4),
    "bytes": np.arange(7, dtype=np.uint8),
    "bf16": np.linspace(-1, 1, 15).astype(ml_dtypes.bfloat16).reshape(3, 5),
    "scalar": np.float32(0.25).reshape(()),
    "empty": np.zeros((0, 4), np.float32),
    "ünïcode.näme": np.ones(3, np.float16),
}


def specs(arrays):
    return {n: (a.dtype, a.shape) for n, a in arrays.items()}


def write(folder, arrays=ARRAYS, order=None, **options):
    with SafetensorsWriter(folder, "params", specs(arrays), **options) as writer:
        for name in order or arrays:
            writer.write(name, arrays[name])
    return writer


def test_round_trip_by_the_library(tmp_path):
    writer = write(tmp_path, order=reversed(ARRAYS), metadata={"format": "pt", "k": "v"})
    path = tmp_path / "params.safetensors"
    assert [p.name for p in tmp_path.iterdir()] == ["params.safetensors"]
    assert writer.nbytes == path.stat().st_size
    with safetensors.safe_open(path, "numpy") as f:
        assert f.metadata() == {"format": "pt", "k": "v"}
        assert set(f.keys()) == set(ARRAYS)
        for name, want in ARRAYS.items():
            if name != "bf16":
                np.testing.assert_array_equal(f.get_tensor(name), want)
    with safetensors.safe_open(path, "pt") as f:
        np.testing.assert_array_equal(f.get_tensor("bf16").float().numpy(), ARRAYS["bf16"].astype(np.float32))
    file = SafetensorsFile(path)
    for name, want in ARRAYS.items():
        assert file.array(name).tobytes() == want.tobytes()
        assert file.tensors[name].begin % want.dtype.itemsize == 0
    length = int.from_bytes(path.read_bytes()[:8], "little")
    assert length % 8 == 0


def test_shards(tmp_path):
    arrays = {f"t{i}": np.full((64,), i, np.float32) for i in range(10)}
    writer = write(
        tmp_path, arrays, order=[f"t{i}" for i in (5, 0, 9, 3, 1, 2, 4, 8, 7, 6)], max_shard_bytes=700
    )
    assert writer.files == [f"params-{i:05d}-of-00005.safetensors" for i in range(1, 6)]
    index = json.loads((tmp_path / "params.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 2560}
    assert index["weight_map"]["t9"] == "params-00005-of-00005.safetensors"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        [*writer.files, "params.safetensors.index.json"]
    )
    owner = open_shards(tmp_path, "params")
    for name, want in arrays.items():
        np.testing.assert_array_equal(owner[name].array(name), want)


def test_a_tensor_larger_than_a_shard(tmp_path):
    arrays = {"a": np.zeros(10, np.uint8), "big": np.zeros(1000, np.uint8), "b": np.zeros(10, np.uint8)}
    assert len(write(tmp_path, arrays, max_shard_bytes=100).files) == 3


@given(st.data())
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_tensors(tmp_path, data):
    arrays = {}
    for i in range(data.draw(st.integers(0, 6))):
        dtype = data.draw(st.sampled_from(sorted(NUMPY_DTYPES.values(), key=str)))
        shape = tuple(data.draw(st.lists(st.integers(0, 5), max_size=3)))
        size = int(np.prod(shape)) * dtype.itemsize
        arrays[f"t{i}"] = (
            np.arange(size, dtype=np.uint8).view(dtype).reshape(shape) if size else np.zeros(shape, dtype)
        )
    limit = data.draw(st.integers(1, 300))
    folder = tmp_path / str(data.draw(st.integers(0, 10**9)))
    writer = write(folder, arrays, max_shard_bytes=limit)
    for file in writer.files:
        held = SafetensorsFile(folder / file)
        for name in held.tensors:
            want = arrays.pop(name)
            assert held.array(name).tobytes() == want.tobytes() and held.array(name).shape == want.shape
    assert not arrays


REFUSED = {
    "unknown": (lambda w: w.write("x", np.zeros(2)), "not declared"),
    "twice": (
        lambda w: (w.write("bytes", ARRAYS["bytes"]), w.write("bytes", ARRAYS["bytes"])),
        "written before",
    ),
    "shape": (lambda w: w.write("bytes", np.zeros(8, np.uint8)), "expected uint8"),
    "dtype": (lambda w: w.write("bytes", np.zeros(7, np.int8)), "found int8"),
    "missing": (lambda w: w.close(), "were not written, W first"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_and_leaves_nothing(tmp_path, case):
    call, words = REFUSED[case]
    with (
        pytest.raises(ShapeError, match=words),
        SafetensorsWriter(tmp_path, "params", specs(ARRAYS)) as writer,
    ):
        call(writer)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"a": (np.complex64, (2,))}, "complex64"),
        ({"a": (np.float32, (-1,))}, "shape"),
        ({"": (np.float32, (1,))}, "name"),
        ({"__metadata__": (np.float32, (1,))}, "name"),
    ],
)
def test_refuses_declarations(tmp_path, bad, words):
    with pytest.raises(ShapeError, match=words):
        SafetensorsWriter(tmp_path / "new", "params", bad)


def test_an_exception_keeps_the_old_file(tmp_path):
    write(tmp_path, {"a": np.ones(3)})
    before = (tmp_path / "params.safetensors").read_bytes()
    with (
        pytest.raises(RuntimeError),
        SafetensorsWriter(tmp_path, "params", {"a": (np.float64, (3,))}) as writer,
    ):
        writer.write("a", np.zeros(3))
        raise RuntimeError
    assert (tmp_path / "params.safetensors").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_folder_is_a_file(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        SafetensorsWriter(tmp_path / "x", "params", specs(ARRAYS))


def test_not_contiguous(tmp_path):
    a = np.arange(20, dtype=np.uint32).reshape(4, 5).T
    write(tmp_path, {"a": a})
    np.testing.assert_array_equal(SafetensorsFile(tmp_path / "params.safetensors").array("a"), a)
