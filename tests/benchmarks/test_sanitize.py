import benchmark_modules  # noqa: F401
import pytest

from benchmarks import sanitize
from nvfp4_tvm.codegen.matmul import host_name
from nvfp4_tvm.schedules.base import MatmulProblem
from nvfp4_tvm.schedules.dispatch import kernels_for
from nvfp4_tvm.target import cuda_target


@pytest.mark.parametrize("arch", ["sm_89", "sm_90"])  # those that it runs by default
def test_every_kernel_gets_rows_of_its_range(arch):
    problem = MatmulProblem(264, 400)
    rows = sanitize.one_of_each(problem, arch)
    chosen = kernels_for(problem, cuda_target(arch).target)
    assert set(rows) == {kernel.name for _, _, kernel in chosen}
    for m_range, _, kernel in reversed(chosen):
        if [k.name for _, _, k in chosen].count(kernel.name) == 1:
            assert rows[kernel.name] in m_range


def test_our_kernels_are_the_ones_instrumented():
    assert sanitize.KERNELS in host_name(MatmulProblem(8, 16))


def test_a_missing_tool_is_named(monkeypatch):
    monkeypatch.setattr(sanitize.shutil, "which", lambda name: None)
    monkeypatch.setattr(sanitize, "toolkit_roots", list)
    with pytest.raises(SystemExit, match="compute-sanitizer is not on this machine"):
        sanitize.sanitizer()


TOOL = """#!/bin/sh
case "$*" in *--kernel-name*) {old};; esac
echo "========= COMPUTE-SANITIZER"
echo "ran gemv_x with M=7, 0 bytes of workspace: error 1e-03"
echo "========= {kind} SUMMARY: {count} errors"
exit {code}
"""


@pytest.mark.parametrize("old", ["echo unknown option; exit 1", "true"])
@pytest.mark.parametrize(("count", "code"), [(0, 0), (3, 9)])
def test_what_the_tool_says_is_kept(tmp_path, monkeypatch, old, count, code):
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(TOOL.format(old=old, kind="ERROR", count=count, code=code))
    tool.chmod(0o755)
    monkeypatch.setattr(sanitize, "sanitizer", lambda: tool)
    found = sanitize.watch("memcheck", "8x16", "bfloat16", "sm_90", 10)
    assert found["summary"] == f"ERROR SUMMARY: {count} errors" and found["exit_code"] == code
    assert found["kernels"] == ["gemv_x, M=7"]


def test_a_tool_without_end_is_stopped(tmp_path, monkeypatch):
    tool = tmp_path / "compute-sanitizer"
    tool.write_text("#!/bin/sh\necho COMPUTE-SANITIZER\nexec sleep 60\n")
    tool.chmod(0o755)
    monkeypatch.setattr(sanitize, "sanitizer", lambda: tool)
    found = sanitize.watch("racecheck", "8x16", "bfloat16", "sm_90", 0.5)
    assert found["exit_code"] == 124 and found["summary"] == "no end within 0.5 s"
