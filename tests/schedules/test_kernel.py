"""What a family may hand to the builder."""

import pytest
from tvm.script import tirx as T

from nvfp4_tvm.errors import ShapeError
from nvfp4_tvm.schedules.kernel import CudaKernel, Launch, Workspace


@T.prim_func(s_tir=True)
def copy(a: T.Buffer((4,), "float32"), b: T.Buffer((4,), "float32")):
    for i in range(4):
        with T.sblock("copy"):
            vi = T.axis.remap("S", [i])
            b[vi] = a[vi]


def test_launches_name_operands_and_workspaces():
    sums = Workspace("sums", "float32", lambda M: (M, 4))
    launches = (Launch(copy, ("x", "sums"), "s_tir"), Launch(copy, ("sums", "out"), "s_tir"))
    kernel = CudaKernel("two_launches", launches, (sums,))
    assert kernel.workspaces[0].shape(3) == (3, 4)
    assert not kernel.launches[0].arch_specific


@pytest.mark.parametrize("arguments", [("x", "sums"), ("x",), ("x", "out", "bias")])
def test_arguments_that_do_not_fit_are_refused(arguments):
    with pytest.raises(ShapeError, match=r"kernel bad: a launch names arguments .* for 2 parameters"):
        CudaKernel("bad", (Launch(copy, arguments, "s_tir"),))


def test_a_workspace_cannot_take_an_operands_name():
    with pytest.raises(ShapeError, match="workspace 'out': the name is an operand's"):
        Workspace("out", "float32", lambda M: (M,))
