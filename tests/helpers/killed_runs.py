"""Quantizing again and again, killed at random moments. For a process of its own, which itself runs no kernel:
TVM's threads do not survive a fork."""

import os
import random
import shutil
import signal
import time
from pathlib import Path

from nvfp4_tvm import quantizing
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


def run(source, out):
    return child(lambda: quantize_checkpoint(source, out, max_shard_bytes=SHARD_BYTES))


def killed_runs(source, folder, kills):
    """Return how many runs left their work, nothing or everything, and whether all that appeared was right."""
    quantizing.quantize_function("bfloat16", "compressed-tensors", "amax")
    folder, counts = Path(folder), {"work": 0, "nothing": 0, "everything": 0, "right": True}
    for attempt in range(2):
        start = time.perf_counter()
        assert os.waitpid(run(source, folder / f"expected{attempt}"), 0)[1] == 0
        seconds = time.perf_counter() - start
    expected = contents(folder / "expected0")
    counts["right"] &= contents(folder / "expected1") == expected
    moments, out = random.Random(0), folder / "out"
    for _ in range(kills):
        process = run(source, out)
        time.sleep(moments.uniform(0, 1.1 * seconds))
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        if out.exists():
            counts["everything"] += 1
            counts["right"] &= contents(out) == expected
            shutil.rmtree(out)
        else:
            counts["work" if (folder / ".out.partial" / ".journal").exists() else "nothing"] += 1
    counts["right"] &= os.waitpid(run(source, out), 0)[1] == 0 and contents(out) == expected
    counts["right"] &= not (folder / ".out.partial").exists()
    return counts
