import logging
from itertools import pairwise

import pytest
from cuda_on_host import kernel_on_host
from grouped_problems import ROUTINGS, Experts, check, empty

from nvfp4_tvm.arch import ARCHS
from nvfp4_tvm.codegen.cache import compile_cached
from nvfp4_tvm.codegen.launch import lower_launch, with_host
from nvfp4_tvm.codegen.sass import count_instructions, sass
from nvfp4_tvm.schedules.base import MatmulProblem, MRange
from nvfp4_tvm.schedules.gemv_grouped import GroupedGemv, max_rows
from nvfp4_tvm.schedules.grouped import GroupedProblem
from nvfp4_tvm.target import cuda_target, resolve_target


@pytest.mark.parametrize(
    ("problem", "target", "why"),
    [
        (GroupedProblem(64, 64, MRange(1, 8), experts=8), "llvm", "not cuda"),
        (MatmulProblem(64, 64, MRange(1, 8)), "cuda:sm_90", "there are no experts"),
        (GroupedProblem(64, 64, MRange(1, 8), "float32", experts=8), "cuda:sm_90", "float32"),
        (GroupedProblem(64, 64, MRange(1, 300), experts=8), "cuda:sm_90", "at most 180"),
        (GroupedProblem(64, 64, experts=8), "cuda:sm_90", "at most 180"),
        (GroupedProblem(64, 64, MRange(1, 70000), experts=8, selected=True), "cuda:sm_90", "at most 65535"),
    ],
)
def test_refusals_say_why(problem, target, why, caplog):
    rule = GroupedGemv(GroupedProblem(64, 64, experts=8))
    with caplog.at_level(logging.DEBUG, "nvfp4_tvm.schedules.base"):
        assert rule.apply(problem, resolve_target(target).target) is None
    assert why in caplog.text


@pytest.mark.parametrize("experts", [1, 2, 8, 60, 128, 256])
def test_ranges_follow_one_another(experts):
    rule = GroupedGemv(GroupedProblem(64, 64, experts=experts))
    ranges = rule.ranges(64, 64, ARCHS["sm_90"])
    assert ranges[0].low == 1 and ranges[-1].high == max_rows(experts)
    assert all(lower.high + 1 == upper.low for lower, upper in pairwise(ranges))


def compiled(arch, problem):
    target = with_host(cuda_target(arch).target)
    kernel = GroupedGemv(problem).apply(problem, target)
    (launch,) = kernel.launches
    lowered = lower_launch(launch, "main", target)
    code = compile_cached(lowered.source, lowered.arch)
    (usage,) = code.usage.values()
    assert usage.spill_stores == usage.spill_loads == usage.stack == 0, problem
    return kernel, launch, code


SORTED = GroupedProblem(48, 400, MRange(5, 8), experts=9, activation="silu_mul")
SELECTED = GroupedProblem(
    100, 400, MRange(8, 8), "float16", "float16", experts=9, selected=True, shared_x=True
)


@pytest.mark.parametrize(
    ("arch", "problem"),
    [("sm_80", SORTED), ("sm_86", SELECTED), ("sm_89", SORTED), ("sm_90", SELECTED)],
    ids=str,
)
def test_machine_code_for_every_architecture(arch, problem):
    kernel, launch, code = compiled(arch, problem)
    assert kernel.name.startswith("gemv_grouped_m8_")
    assert launch.arguments == ("x", "words", "scales", "global_scale", "indptr", "out")
    counts = count_instructions(sass(code.fatbin, arch))
    assert any(name.startswith("HMMA.16816.F32") for name in counts)
    # Selected experts are read, others searched for
    assert any(name.startswith("SHFL.UP") for name in counts) != problem.selected


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "rows"), [("sm_80", 22), ("sm_90", 9)])
def test_machine_code_of_all_eights(arch, rows):
    compiled(arch, GroupedProblem(1536, 2048, MRange(128 * rows, 128 * rows), experts=128))


def test_dependent_launch_waits_before_it_reads_which_experts():
    problem = GroupedProblem(64, 256, MRange(1, 8), experts=8)
    for arch in ("sm_89", "sm_90"):
        _, launch, code = compiled(arch, problem)
        body = code.source[code.source.index("main_kernel(", code.source.rindex("__launch_bounds__")) :]
        body = body[body.index("{") :]
        assert ("griddepcontrol" in body) == (arch == "sm_90")
        assert bool(launch.function.attrs.get("tirx.kernel_launch_params", [])) == (arch == "sm_90")
        if arch == "sm_90":
            wait, trigger = body.index("griddepcontrol_wait"), body.index("griddepcontrol_launch_dependents")
            assert wait < min(body.index(name) for name in ("indptr_ptr[", "words_ptr[", "x_ptr[")) < trigger


@pytest.mark.parametrize(
    "problem",
    [
        SORTED,
        GroupedProblem(100, 400, MRange(3, 3), "float16", "float16", experts=9, selected=True, shared_x=True),
    ],
    ids=str,
)
def test_numbers_on_the_cpu(problem):
    target = cuda_target("sm_90").target
    run, experts = (
        kernel_on_host(GroupedGemv(problem).apply(problem, target), target),
        Experts.random(problem),
    )
    for M in {problem.M.low, problem.M.high}:
        for routing in ROUTINGS:
            operands, expected = experts.case(M, routing)
            check(run(operands, empty(problem, M), order=M), expected)
