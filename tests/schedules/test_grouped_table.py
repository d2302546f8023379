"""Experts through the whole dispatch: what covers which M, and the numbers on a GPU."""

from itertools import pairwise

import numpy as np
import pytest
import tvm
from grouped_problems import GPU_CASES, GPU_GEMVS, ROUTINGS, Experts, check, gpu_library, run_on_gpu

from nvfp4_tvm.errors import TargetError
from nvfp4_tvm.schedules.base import MRange
from nvfp4_tvm.schedules.dispatch import kernels_for, table_for
from nvfp4_tvm.schedules.grouped import GroupedProblem
from nvfp4_tvm.target import cuda_target, resolve_target


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize("experts", [1, 8, 128])
def test_gemv_gemm_and_no_gap(arch, experts, monkeypatch):
    # What is chosen, without making it
    from nvfp4_tvm.schedules import gemm_mma_grouped
    from nvfp4_tvm.schedules.kernel import CudaKernel

    monkeypatch.setattr(gemm_mma_grouped, "kernel", lambda problem, config: CudaKernel(config.name, ()))
    chosen = kernels_for(
        GroupedProblem(64, 64, MRange(100 * experts), experts=experts), cuda_target(arch).target
    )
    assert chosen[0][0].low == 100 * experts and chosen[-1][0].high is None
    for (lower, _, _), (upper, _, _) in pairwise(chosen):
        assert lower.high + 1 == upper.low
    assert {rule.name for _, rule, _ in chosen} == {"gemm_mma_grouped"}


def test_few_rows_and_selected_experts_get_the_gemv():
    target = cuda_target("sm_89").target
    few = kernels_for(GroupedProblem(64, 64, MRange(1, 40), experts=8), target)
    assert [(str(part), rule.name) for part, rule, _ in few] == [
        ("1..8", "gemv_grouped"),
        ("9..32", "gemv_grouped"),
        ("33..40", "gemv_grouped"),
    ]
    one = GroupedProblem(64, 64, MRange(8, 8), experts=128, selected=True, shared_x=True)
    ((_, rule, kernel),) = kernels_for(one, target)
    assert rule.name == "gemv_grouped" and kernel.launches[0].arguments[-2:] == ("indptr", "out")


def test_float32_gets_the_plain_kernel():
    problem = GroupedProblem(64, 64, x_dtype="float32", out_dtype="float32", experts=8)
    assert {rule.name for _, rule, _ in kernels_for(problem, cuda_target("sm_90").target)} == {
        "gemm_plain_grouped"
    }


def test_other_targets_are_refused():
    with pytest.raises(TargetError, match="target vulkan: no NVFP4 kernels"):
        table_for(tvm.target.Target("vulkan"), GroupedProblem(64, 64, experts=2))
    ((_, rules),) = table_for(resolve_target("llvm").target, GroupedProblem(64, 64, experts=2))
    assert [rule.name for rule in rules] == ["cpu-grouped"]


def name_of(value):
    """Of a problem or rule, the same in every process."""
    if isinstance(value, GroupedProblem):
        return f"{value.label}_{value.x_dtype}_{value.M}"
    config = getattr(value, "config", None)
    return "dispatch" if value is None else f"{value.name}_{getattr(config, 'name', config)}"


def needs_gpu(test):
    return pytest.mark.gpu(pytest.mark.skipif(not tvm.cuda(0).exist, reason="needs an NVIDIA GPU")(test))


@needs_gpu
@pytest.mark.parametrize(("problem", "rule"), [*GPU_CASES, *GPU_GEMVS], ids=name_of)
def test_numbers_on_the_gpu(problem, rule):
    from nvfp4_tvm.arch import arch_of_capability

    library = gpu_library(problem, rule, arch_of_capability(tvm.cuda(0).compute_version).name)
    experts = Experts.random(problem)
    for M in [problem.M.low] if problem.selected else (1, 3, 17, 100, 777, 3200):
        if M not in problem.M:
            continue
        for seed, routing in enumerate(ROUTINGS):
            operands, expected = experts.case(M, routing, seed)
            found = run_on_gpu(library.function, library.workspace_bytes(M), problem, operands, M)
            check(found, expected)


@needs_gpu
def test_rows_beyond_the_last_expert_are_left_alone():
    problem, rule = GPU_CASES[0]
    from nvfp4_tvm.arch import arch_of_capability

    library = gpu_library(problem, rule, arch_of_capability(tvm.cuda(0).compute_version).name)
    experts = Experts.random(problem)
    for M in (20, 400):
        operands, expected = experts.case(M)
        last = np.repeat(operands["indptr"][-2:-1], 2)
        operands["indptr"][-2:] = last  # the last expert's rows belong to none
        found = run_on_gpu(library.function, library.workspace_bytes(M), problem, operands, M)
        check(found[: last[0]], expected[: last[0]])
        assert np.isnan(found[last[0] :].astype(np.float32)).all()
