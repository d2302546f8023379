import benchmark_modules  # noqa: F401
import pytest

from benchmarks import sanitize
from nvfp4_tvm.arch import ARCHS
from nvfp4_tvm.codegen.matmul import host_name
from nvfp4_tvm.schedules.base import MatmulProblem
from nvfp4_tvm.schedules.dispatch import kernels_for
from nvfp4_tvm.target import cuda_target


@pytest.mark.parametrize("arch", ARCHS)
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
