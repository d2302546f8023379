import os
import subprocess
import sys

from nvfp4_tvm.runtime import threads


def test_hyperthreads_count_once(monkeypatch, tmp_path):
    for cpu, siblings in enumerate(["0,4", "1,5", "2,6", "3,7", "0,4", "1,5", "2,6", "3,7"]):
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings + "\n")
    monkeypatch.setattr(threads, "_TOPOLOGY", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert threads.cores() == 4
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 4, 5}, raising=False)
    assert threads.cores() == 2


def test_without_a_topology_every_processor_counts(monkeypatch, tmp_path):
    monkeypatch.setattr(threads, "_TOPOLOGY", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 2, 3}, raising=False)
    assert threads.cores() == 3


def test_the_environment_wins(monkeypatch):
    monkeypatch.setenv("TVM_NUM_THREADS", "7")
    monkeypatch.delenv("TVM_BIND_THREADS", raising=False)
    threads.configure_threads()
    assert (os.environ["TVM_NUM_THREADS"], os.environ["TVM_BIND_THREADS"]) == ("7", "0")


def test_tvm_starts_that_many():
    code = (
        "from nvfp4_tvm.runtime.threads import configure_threads, cores; configure_threads(); import tvm;"
        "assert tvm.get_global_func('runtime.NumThreads')() == cores()"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TVM_")}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0
