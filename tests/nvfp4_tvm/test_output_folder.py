import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nvfp4_tvm.checkpoint.writer import SafetensorsWriter
from nvfp4_tvm.errors import CheckpointError, OutputError, VanishedError
from nvfp4_tvm.output_folder import JOURNAL, output_folder, output_key

SPECS = {"a": (np.uint8, (100,)), "b": (np.float32, (7, 3))}
ARRAYS = {"a": np.arange(100, dtype=np.uint8), "b": np.linspace(0, 1, 21, dtype=np.float32).reshape(7, 3)}


def fill(work, names="ab"):
    """Write tensors, and return those that were not there yet."""
    written = []
    with SafetensorsWriter(work.path, "params", SPECS, journal=work.journal) as writer:
        for name in "ab":
            if not writer.resumed(name):
                if name not in names:
                    raise KeyboardInterrupt
                writer.write(name, ARRAYS[name])
                written.append(name)
    return written


@pytest.fixture
def begun(tmp_path):
    """An output that an interrupt stopped after its first tensor."""
    with pytest.raises(KeyboardInterrupt), output_folder(tmp_path / "out", "key") as work:
        fill(work, "a")
    assert not (tmp_path / "out").exists()
    return tmp_path / "out"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_it_appears_when_it_is_complete(tmp_path):
    out = tmp_path / "deeper" / "out"
    with output_folder(out, "key") as work:
        fill(work)
        assert not out.exists()
    assert names(out) == ["params.safetensors"] and names(out.parent) == ["out"]


def test_an_interrupted_run_is_continued(begun):
    with output_folder(begun, "key") as work:
        assert fill(work) == ["b"]
    with output_folder(begun.with_name("whole"), "key") as work:
        assert fill(work) == ["a", "b"]
    files = [(folder / "params.safetensors").read_bytes() for folder in (begun, begun.with_name("whole"))]
    assert files[0] == files[1]


def test_another_output_is_not_continued(begun):
    with output_folder(begun, "other key") as work:
        assert names(work.path) == [JOURNAL]
        assert fill(work) == ["a", "b"]


@pytest.mark.parametrize("damage", ["data", "journal", "header", "size"])
def test_damaged_work_is_done_again(begun, damage):
    partial = begun.with_name(".out.partial")
    path = partial / (JOURNAL if damage == "journal" else ".params.safetensors.partial")
    data = bytearray(path.read_bytes())
    if damage == "size":
        del data[-1]
    elif damage == "journal":
        del data[-5:]  # as if the process died while it wrote the line
    else:
        header = int.from_bytes(data[:8], "little")
        # The writer puts the wider dtype first: a is at the end.
        data[-1 if damage == "data" else header] ^= 1
    path.write_bytes(data)
    with output_folder(begun, "key") as work:
        assert fill(work) == ["a", "b"]


def test_errors_leave_nothing(tmp_path):
    with pytest.raises(CheckpointError, match=r"^bad$"), output_folder(tmp_path / "out", "key") as work:
        SafetensorsWriter(work.path, "params", SPECS, journal=work.journal).write("a", ARRAYS["a"])
        raise CheckpointError("bad")
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [OutputError, VanishedError])
def test_what_was_done_before_a_fault_stays(tmp_path, error):
    message = r"^gone; what is done stays in .*\.out\.partial: run the same again"
    with pytest.raises(error, match=message), output_folder(tmp_path / "out", "key") as work:
        SafetensorsWriter(work.path, "params", SPECS, journal=work.journal).write("a", ARRAYS["a"])
        raise error("gone")
    with output_folder(tmp_path / "out", "key") as work:
        assert fill(work) == ["b"]


def test_a_second_process_is_refused_and_harms_nothing(tmp_path):
    code = "import sys; from pathlib import Path; from nvfp4_tvm.output_folder import output_folder\n"
    code += "with output_folder(Path(sys.argv[1]), 'key'): pass"
    with output_folder(tmp_path / "out", "key") as work:
        other = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "out")],
            capture_output=True,
            text=True,
            env=os.environ,
        )
        assert "another process is writing it; wait for that" in other.stderr.splitlines()[-1]
        fill(work)
    assert names(tmp_path / "out") == ["params.safetensors"]


def test_a_folder_that_appeared_meanwhile_is_kept(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("data")
    with pytest.raises(OutputError, match="appeared in the meantime"), output_folder(tmp_path / "out", "key"):
        pass
    assert (tmp_path / "out" / "mine").read_text() == "data" and names(tmp_path) == ["out"]


def test_replacing(tmp_path):
    for content in ("old", "new"):
        with output_folder(tmp_path / "out", content, replace=True) as work:
            (work.path / "file").write_text(content)
            assert content == "old" or (tmp_path / "out" / "file").read_text() == "old"
    assert (tmp_path / "out" / "file").read_text() == "new" and names(tmp_path) == ["out"]


def test_a_replacement_that_was_killed_in_the_middle_is_undone(tmp_path):
    (tmp_path / ".out.replaced").mkdir()
    (tmp_path / ".out.replaced" / "file").write_text("old")
    with pytest.raises(KeyboardInterrupt), output_folder(tmp_path / "out", "key", replace=True):
        assert (tmp_path / "out" / "file").read_text() == "old"
        raise KeyboardInterrupt


@pytest.mark.parametrize("where", ["/proc/out", "/dev/null/out"])
def test_where_nothing_can_be_written(where):
    with (
        pytest.raises(OutputError, match=rf"^{where}: cannot be written: "),
        output_folder(Path(where), "key"),
    ):
        pass


def test_a_read_only_folder(tmp_path, monkeypatch):
    """Not by its mode, which does not hold root back."""

    def mkdir(path, *_args, **_options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    message = "out: cannot be written: Read-only file system"
    with pytest.raises(OutputError, match=message), output_folder(tmp_path / "out", "key"):
        pass


def test_keys():
    assert output_key(a=1, b="x") == output_key(b="x", a=1) != output_key(a=2, b="x")
