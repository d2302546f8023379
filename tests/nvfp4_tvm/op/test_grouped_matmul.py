import pytest
import tvm
from grouped_problems import ROUTINGS, Experts, check
from relax_modules import build_function, symbolic, tensor
from tvm import relax

from nvfp4_tvm import op
from nvfp4_tvm.errors import ShapeError
from nvfp4_tvm.op.grouped_matmul import problem_of, rows_of
from nvfp4_tvm.schedules.base import MRange
from nvfp4_tvm.schedules.grouped import GroupedProblem


def arguments(problem, M, **other):
    """Relax parameters of a problem, some of other shapes or dtypes."""
    about = {**problem.operands(M), **other}
    return [relax.Var(name, relax.TensorType(*shape_and_dtype)) for name, shape_and_dtype in about.items()]


def function(problem, M):
    inputs = arguments(problem, M)
    attributes = {"N": problem.N, "out_dtype": problem.out_dtype, "activation": problem.activation}
    return build_function(inputs, lambda b: b.emit(op.grouped_matmul(*inputs, **attributes))).get()


@pytest.mark.parametrize(
    "problem",
    [
        GroupedProblem(40, 144, experts=3),
        GroupedProblem(48, 80, x_dtype="float16", out_dtype="float32", experts=5, activation="silu_mul"),
        GroupedProblem(16, 16, x_dtype="float32", out_dtype="float32", experts=1),
        GroupedProblem(40, 144, MRange(3, 3), experts=4, selected=True),
        GroupedProblem(40, 144, MRange(3, 3), experts=4, selected=True, shared_x=True),
    ],
    ids=str,
)
def test_the_definition_is_exact(problem):
    M = 3 if problem.selected else symbolic("n")
    executable = tvm.compile(relax.transform.LegalizeOps()(function(problem, M)), target="llvm")
    machine, experts = relax.VirtualMachine(executable, tvm.cpu()), Experts.random(problem)
    for rows, routing in zip((3,) * 4 if problem.selected else (1, 3, 17, 50), ROUTINGS, strict=True):
        operands, expected = experts.case(rows, routing)
        check(machine["main"](*map(tensor, operands.values())).numpy(), expected)


def test_problem_and_type_of_a_call():
    problem = GroupedProblem(48, 64, x_dtype="float16", out_dtype="float32", experts=6, activation="silu_mul")
    n = symbolic("n")
    call = op.grouped_matmul(*arguments(problem, n), N=48, out_dtype="float32", activation="silu_mul")
    call = relax.BlockBuilder().normalize(call)
    assert problem_of(call) == problem and rows_of(call).same_as(call.args[0].ty.shape[0])
    assert call.ty.dtype == "float32" and call.ty.shape[0].same_as(n) and int(call.ty.shape[1]) == 24


def test_one_row_for_all_experts():
    problem = GroupedProblem(48, 64, experts=6, selected=True, shared_x=True)
    call = relax.BlockBuilder().normalize(op.grouped_matmul(*arguments(problem, 4), N=48))
    assert problem_of(call) == problem and [int(extent) for extent in call.ty.shape] == [4, 48]


SORTED = GroupedProblem(40, 144, experts=3)
SELECTED = GroupedProblem(40, 144, experts=3, selected=True)


@pytest.mark.parametrize(
    ("problem", "other", "message"),
    [
        (SORTED, {"x": ((7, 2, 144), "bfloat16")}, "x is .*, expected a .* tensor of rank 2"),
        (SORTED, {"x": ((7, 144), "int8")}, "x is .*int8"),
        (
            SORTED,
            {"x": ((7, 80), "bfloat16")},
            r"words has shape \[3, 3, 2, .*\], expected \[3, 3, 1, .*\[40, 80\]",
        ),
        (
            SORTED,
            {"indptr": ((3,), "int32")},
            r"indptr is .*, expected int32\[4\] for 3 experts, or int32\[1, k\]",
        ),
        (SORTED, {"indptr": ((4,), "int64")}, "indptr is .*int64"),
        (SORTED, {"words": ((3, 2, 2, 32, 4), "uint32")}, "words is .*, expected a uint32 tensor of rank 6"),
        (
            SORTED,
            {"global_scale": ((3, 40), "float32")},
            r"global_scale has shape \[3, 40\], expected \[3, 48\] for 3 experts",
        ),
        (SORTED, {"scales": ((2, 3, 2, 32), "uint32")}, r"scales has shape \[2, .*, expected \[3, "),
        (
            SELECTED,
            {"indptr": ((2, 7), "int32")},
            r"indptr has shape \[2, 7\].*sort the rows of several tokens",
        ),
        (SELECTED, {"x": ((2, 144), "bfloat16")}, r"x is .*, expected 1 or 7 rows for indptr \[1, 7\]"),
    ],
)
def test_refusals(problem, other, message):
    call = op.grouped_matmul(*arguments(problem, 7, **other), N=40)
    with pytest.raises(ShapeError, match=f"nvfp4.grouped_matmul: {message}"):
        relax.BlockBuilder().normalize(call)
