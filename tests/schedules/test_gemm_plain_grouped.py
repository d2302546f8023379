import pytest
import tvm

from nvfp4_tvm.codegen.cache import compile_cached
from nvfp4_tvm.codegen.launch import lower_launch, with_host
from nvfp4_tvm.schedules.base import MatmulProblem
from nvfp4_tvm.schedules.gemm_plain_grouped import PlainGrouped
from nvfp4_tvm.schedules.grouped import GroupedProblem
from nvfp4_tvm.target import cuda_target, resolve_target


@pytest.mark.parametrize(
    ("problem", "arguments"),
    [
        (GroupedProblem(48, 64, x_dtype="float32", out_dtype="float32", experts=5), ["out"]),
        (GroupedProblem(48, 64, experts=1, activation="silu_mul"), ["products", "out"]),
        (GroupedProblem(48, 64, experts=5, selected=True, shared_x=True), ["out"]),
    ],
    ids=str,
)
def test_launches_compile(problem, arguments):
    target = with_host(cuda_target("sm_80").target)
    kernel = PlainGrouped().apply(problem, target)
    find, *rest = kernel.launches
    assert find.arguments == ("indptr", "experts")
    assert rest[0].arguments[:5] == ("x", "words", "scales", "global_scale", "experts")
    assert [launch.arguments[-1] for launch in rest] == arguments
    for index, launch in enumerate(kernel.launches):
        assert isinstance(launch.function.params[-1].shape[0], tvm.tirx.Var)
        lowered = lower_launch(launch, f"main_{index}", target)
        (usage,) = compile_cached(lowered.source, lowered.arch).usage.values()
        assert not usage.spill_stores


def test_refusals():
    assert PlainGrouped().apply(MatmulProblem(64, 64), cuda_target("sm_80").target) is None
    assert PlainGrouped().apply(GroupedProblem(64, 64), resolve_target("llvm").target) is None
