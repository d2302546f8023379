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
    before = environment.pop("PATH_BEFORE", "")
    more = {
        "PATH": f"{before}:{folder}:{os.environ['PATH']}",
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


def test_every_gpu_tunes_its_part(tmp_path):
    folder = tmp_path / "gpus"
    folder.mkdir()
    (folder / "nvidia-smi").write_text("#!/bin/sh\necho GPU 0\necho GPU 1\n")
    (folder / "nvidia-smi").chmod(0o755)
    done, calls = run(
        tmp_path, "tune", "gain", "gemm", "dense", "e2e", FOLDERS="a b", PATH_BEFORE=str(folder)
    )
    assert done.returncode == 0, done.stdout
    tuned = sorted(call for call in calls if "cli.main tune" in call)
    assert [f"--device cuda:{i}" in call and "--jobs 1" in call for i, call in enumerate(tuned)] == [True] * 2
    parts = sorted(call for call in calls if "model_shapes" in call)
    assert [call.split()[-1] for call in parts] == ["1/2", "2/2"]
    assert [call.split()[1] for call in calls[-4:]] == [
        "benchmarks.tuning_gain", "benchmarks.gemm", "benchmarks.dense", "benchmarks.e2e"
    ]  # fmt: skip
    assert " a b -o " in calls[-1]


def test_an_unknown_step_is_named(tmp_path):
    done, _ = run(tmp_path, "nonsense")
    assert done.returncode == 2 and "found the step 'nonsense'" in done.stderr
