"""Quantizing and compiling, killed at random moments or disturbed. For a process of its own, which itself runs no
kernel: TVM's threads do not survive a fork."""

import contextlib
import os
import random
import resource
import shutil
import signal
import time
from pathlib import Path

import nvfp4_tvm
from nvfp4_tvm import compiler, packing, quantizing
from nvfp4_tvm.errors import OutputError, VanishedError
from nvfp4_tvm.output_folder import output_folder
from nvfp4_tvm.quantize import quantize_checkpoint

SHARD_BYTES = 100_000


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def child(work):
    """Run ``work`` in a fork; return its process id."""
    process = os.fork()
    if process == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return process


def killed_quantizations(source, folder, kills):
    """See `_killed`; a run quantizes a checkpoint."""
    quantizing.quantize_function("bfloat16", "compressed-tensors", "amax")
    return _killed(lambda out: quantize_checkpoint(source, out, max_shard_bytes=SHARD_BYTES), folder, kills)


def disturbed_compilations(source, folder, kills):
    """Return what `_killed` and `_faulty` return of compiling a checkpoint."""
    folders = [Path(folder) / name for name in ("killed", "faulty")]
    for each in folders:
        each.mkdir()
    compile = _compilation(source, Path(folder))
    return _killed(compile, folders[0], kills), _faulty(compile, Path(source), folders[1])


def _compilation(source, folder):
    """Return ``f(out, **options)``, which compiles and finds a library in the cache, but no parameters.

    Kernels are not built: it would take most of the time, and they are one file. The model is made once, before
    anything is forked.
    """
    packing.repack_function()
    os.environ["NVFP4_TVM_CACHE"] = str(folder / "cache")
    made, export = [], compiler._export

    def export_once(*arguments):
        if not made:
            made.append(export(*arguments))
        return made[0]

    def build(_mod, _target, path):
        path.write_bytes(b"a library")

    def compile(out, **options):
        for entry in folder.glob("cache/models/parameters-*"):
            shutil.rmtree(entry)
        nvfp4_tvm.compile(source, out, target="llvm", dtype="bfloat16", **options)

    def stop(*_arguments):
        raise InterruptedError("the model is made")

    compiler._export, compiler._build_library = export_once, build
    parameters, compiler._parameters = compiler._parameters, stop
    with contextlib.suppress(OutputError):
        compile(folder / "never")
    compiler._parameters = parameters
    assert made and list(folder.glob("cache/models/library-*"))
    return compile


def _killed(work, folder, kills):
    """Run ``work(out)`` and kill it, again and again.

    Returns
    -------
    dict
        How many runs left their work, nothing or everything, and whether all that appeared was right.
    """
    folder, counts = Path(folder), {"work": 0, "nothing": 0, "everything": 0, "right": True}
    for attempt in range(2):
        start = time.perf_counter()
        assert os.waitpid(child(lambda a=attempt: work(folder / f"expected{a}")), 0)[1] == 0
        seconds = time.perf_counter() - start
    expected = contents(folder / "expected0")
    counts["right"] &= contents(folder / "expected1") == expected
    moments, out = random.Random(0), folder / "out"
    for _ in range(kills):
        process = child(lambda: work(out))
        time.sleep(moments.uniform(0, 1.1 * seconds))
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        if out.exists():
            counts["everything"] += 1
            counts["right"] &= contents(out) == expected
            shutil.rmtree(out)
        else:
            counts["work" if (folder / ".out.partial" / ".journal").exists() else "nothing"] += 1
    counts["right"] &= os.waitpid(child(lambda: work(out)), 0)[1] == 0 and contents(out) == expected
    counts["right"] &= not (folder / ".out.partial").exists()
    return counts


def _faulty(compile, source, folder):
    """Compile with a full disk, with an input that vanishes, twice at a time; return the messages.

    The last output is compared with an undisturbed one.
    """
    messages, shard = {}, source / "model.safetensors"

    def refused(what, work):
        """Run ``work`` in a child and keep how it was refused."""

        def note():
            try:
                work()
            except OutputError as error:
                (folder / what).write_text(str(error))

        assert os.waitpid(child(note), 0)[1] == 0
        messages[what] = (folder / what).read_text()
        assert not (folder / "out").exists()

    def with_a_full_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (SHARD_BYTES, SHARD_BYTES))
        compile(folder / "out")

    def while_the_input_vanishes():
        def lose(stage, done, _total):
            if stage == "pack" and done and shard.exists():
                shard.rename(folder / "elsewhere")

        try:
            compile(folder / "out", progress=lose)
        except VanishedError as error:
            raise OutputError(f"vanished: {error}") from None

    def at_the_same_time():
        with output_folder(folder / "out", "the key of the first"):
            compile(folder / "out")

    assert os.waitpid(child(lambda: compile(folder / "expected")), 0)[1] == 0
    refused("full", with_a_full_disk)
    refused("vanished", while_the_input_vanishes)
    (folder / "elsewhere").rename(shard)
    refused("second", at_the_same_time)
    assert os.waitpid(child(lambda: compile(folder / "out")), 0)[1] == 0
    assert contents(folder / "out") == contents(folder / "expected")
    return messages
