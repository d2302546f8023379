import os
import subprocess

import benchmark_modules
import pytest

SCRIPT = benchmark_modules.ROOT / "benchmarks" / "evidence.sh"


def run(tmp_path, *steps, **environment):
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "python3").write_text(
        '#!/bin/sh\necho "$@" >> $CALLS\ncase "$@" in *sanitize*) exit 3;; esac\n'
    )
    (folder / "python3").chmod(0o755)
    calls = tmp_path / "calls"
    calls.write_text("")
    more = {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "OUT": str(tmp_path / "out"),
        "CALLS": str(calls),
        "JOBS": "3",
    }
    done = subprocess.run(
        [str(SCRIPT), *steps], capture_output=True, text=True, env={**os.environ, **more, **environment}
    )
    return done, calls.read_text().splitlines()


def test_all_steps_run_and_a_failure_is_told_at_the_end(tmp_path):
    done, calls = run(tmp_path, PEER_GEMM="others.py", PEER_ARGS="--a --b")
    assert done.returncode == 1 and done.stdout.splitlines()[-1] == "failed: sanitize"
    assert len(calls) == 6 and "--jobs 3" in calls[0] and calls[-1].startswith("-m pytest")
    assert calls[2].startswith(
        "others.py --a --b --peer benchmarks.peer:NVFP4TVM --peer benchmarks.peer:NVFP4TVMSm89"
    )
    assert len(list((tmp_path / "out").glob("*.log"))) == 6


@pytest.mark.parametrize(("steps", "calls"), [(("tests",), 1), (("build", "tests"), 2)])
def test_steps_can_be_chosen(tmp_path, steps, calls):
    done, called = run(tmp_path, *steps)
    assert done.returncode == 0 and len(called) == calls


def test_an_unknown_step_is_named(tmp_path):
    done, _ = run(tmp_path, "nonsense")
    assert done.returncode == 2 and "found the step 'nonsense'" in done.stderr
