import pytest

from nvfp4_tvm.codegen.dense import build_dense, build_dense_kernels
from nvfp4_tvm.errors import TargetError
from nvfp4_tvm.schedules.base import MRange
from nvfp4_tvm.schedules.dense import dense_kernel, dense_kernels
from nvfp4_tvm.schedules.dense_kernel import DenseConfig
from nvfp4_tvm.schedules.dense_problem import DenseProblem
from nvfp4_tvm.target import resolve_target

SM89 = resolve_target("cuda:sm_89").target
PROBLEM = DenseProblem(24, 48, "float16", "float16")


def test_built_once():
    built = build_dense(PROBLEM, SM89)
    assert built is build_dense(PROBLEM, SM89)
    assert built.name == "dense_24x48_float16_float16" and built.module.implements_function(built.name)
    assert len(built.log.usage) == len(dense_kernels(PROBLEM, SM89))


def test_given_kernels():
    kernel = dense_kernel(PROBLEM, DenseConfig(1, 1, 1, 1))
    built = build_dense_kernels(PROBLEM, [(MRange(), kernel)], SM89)
    (name,) = built.log.usage
    assert name == f"{built.name}_{kernel.name}_kernel"


@pytest.mark.parametrize(
    ("problem", "target"),
    [
        (PROBLEM, "llvm"),
        (DenseProblem(24, 48, "float32", "float32"), "cuda:sm_89"),
        (DenseProblem(24, 20, "float16", "float16"), "cuda:sm_89"),
    ],
)
def test_what_has_no_kernel_is_refused(problem, target):
    with pytest.raises(TargetError, match=f"has no kernel {problem.label}_.*expected a cuda target, 16-bit"):
        build_dense(problem, resolve_target(target).target)
