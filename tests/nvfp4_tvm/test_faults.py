"""Quantizing and compiling killed, out of disk, without their input: nothing lost, and one clear line."""

import multiprocessing
import os
import resource
from concurrent.futures import ProcessPoolExecutor

import benchmark_modules  # noqa: F401
import ml_dtypes
import numpy as np
import pytest
import raw_checkpoints as rc
from killed_runs import (
    SHARD_BYTES,
    child,
    contents,
    disturbed_compilations,
    killed_quantizations,
)

from benchmarks.large_models import Model, make_checkpoint
from nvfp4_tvm.errors import OutputError, VanishedError
from nvfp4_tvm.quantize import quantize_checkpoint

KILLS = 50
#: Compiling writes with the same code; all 50 have been tried.
COMPILATIONS_KILLED = 15
LAYERS = 8


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    rng = np.random.default_rng(0)
    tensors = {
        f"model.layers.{i}.mlp.{name}.weight": rc.raw(
            rng.standard_normal((64, 256)).astype(ml_dtypes.bfloat16)
        )
        for i in range(LAYERS)
        for name in ("gate_proj", "up_proj", "down_proj")
    }
    return rc.write(tmp_path_factory.mktemp("source"), "none", tensors)


@pytest.fixture(scope="module")
def expected(source, tmp_path_factory):
    """The output of a run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("expected") / "out"
    quantize_checkpoint(source, folder, max_shard_bytes=SHARD_BYTES)
    return contents(folder)


@pytest.fixture(scope="module")
def nvfp4_source(tmp_path_factory):
    """A checkpoint that can be compiled."""
    folder = tmp_path_factory.mktemp("nvfp4")
    make_checkpoint(folder, Model(256, 512, 6, 2, 1, 512), 6, quantized=True, sparse=False)
    return folder


def elsewhere(work, *arguments):
    """Run in a process that was not forked from this one."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


@pytest.mark.slow  # on a busy machine
def test_quantizing_killed_at_any_moment(source, tmp_path):
    """SIGKILL: the output is complete or not there, and running again finishes it, bit for bit the same."""
    counts = elsewhere(killed_quantizations, source, tmp_path, KILLS)
    assert counts["right"] and counts["work"] and sum(counts.values()) == KILLS + 1


@pytest.mark.slow
def test_compiling_killed_and_disturbed(nvfp4_source, tmp_path):
    """Killed as above; a full disk, a lost input, a second process: one line each, and the same bytes."""
    counts, messages = elsewhere(disturbed_compilations, nvfp4_source, tmp_path, COMPILATIONS_KILLED)
    assert counts["right"] and counts["work"] and sum(counts.values()) == COMPILATIONS_KILLED + 1
    assert "cannot be written: File too large" in messages["full"]
    assert (
        "cannot be read any more" in messages["vanished"] and "what is done stays in" in messages["vanished"]
    )
    assert "another process is writing it; wait for that or choose another output" in messages["second"]
    assert not any("\n" in message for message in messages.values())


def test_disk_full(source, expected, tmp_path):
    """A limit on the size of files stands for a full disk."""
    out, message = tmp_path / "out", tmp_path / "message"

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (80_000, 80_000))
        try:
            quantize_checkpoint(source, out, max_shard_bytes=SHARD_BYTES)
        except OutputError as error:
            message.write_text(str(error))

    os.waitpid(child(limited), 0)
    text = message.read_text()
    assert "cannot be written: File too large" in text and "\n" not in text
    assert not out.exists()
    message.unlink()
    quantize_checkpoint(source, out, max_shard_bytes=SHARD_BYTES)
    assert contents(out) == expected


def test_too_little_room_is_found_before_the_work(source, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _path: type("Usage", (), {"free": 1000})())
    with pytest.raises(OutputError, match="found 1000 bytes free on its disk, expected at least"):
        quantize_checkpoint(source, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fault", ["removed", "cut"])
def test_input_that_vanishes(source, expected, tmp_path, fault):
    copy = tmp_path / "copy"
    copy.mkdir()
    for name, data in contents(source).items():
        (copy / name).write_bytes(data)
    shard = copy / "model.safetensors"
    times = shard.stat()

    def lose(_done, _total, name):
        if ".layers.1." not in name or not shard.exists():
            return
        if fault == "removed":
            shard.rename(tmp_path / "elsewhere")
        else:
            os.truncate(shard, 5000)

    with pytest.raises(VanishedError, match=r"model\.safetensors: .*; what is done stays in") as info:
        quantize_checkpoint(copy, tmp_path / "out", max_shard_bytes=SHARD_BYTES, progress=lose)
    assert "\n" not in str(info.value) and not (tmp_path / "out").exists()
    shard.write_bytes(contents(source)[shard.name])
    os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))
    quantize_checkpoint(copy, tmp_path / "out", max_shard_bytes=SHARD_BYTES)
    assert contents(tmp_path / "out") == expected
