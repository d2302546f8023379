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
from nvfp4_tvm.schedules.gemm_mma_config import MmaConfig
from nvfp4_tvm.schedules.gemm_mma_grouped import GroupedGemm, choose_config
from nvfp4_tvm.schedules.gemv_grouped import max_rows
from nvfp4_tvm.schedules.grouped import GroupedProblem
from nvfp4_tvm.target import cuda_target, resolve_target

SMALL = GroupedProblem(64, 64, experts=8)


@pytest.mark.parametrize(
    ("rule", "problem", "target", "why"),
    [
        (GroupedGemm(SMALL), SMALL, "llvm", "not cuda"),
        (GroupedGemm(SMALL), MatmulProblem(64, 64), "cuda:sm_89", "not sorted by expert"),
        (GroupedGemm(SMALL), GroupedProblem(64, 64, selected=True), "cuda:sm_89", "not sorted by expert"),
        (GroupedGemm(SMALL), GroupedProblem(64, 64, x_dtype="float32"), "cuda:sm_89", "float32"),
        (
            GroupedGemm(SMALL, MmaConfig(128, 128, 64, 64, stages=3)),
            SMALL,
            "cuda:sm_89",
            "shared memory, sm_89 has 101376",
        ),
    ],
)
def test_refusals(rule, problem, target, why, caplog):
    with caplog.at_level(logging.DEBUG, logger="nvfp4_tvm"):
        assert rule.apply(problem, resolve_target(target).target) is None
    assert why in caplog.text and "gemm_mma_grouped" in caplog.text


@pytest.mark.parametrize("arch", ARCHS.values(), ids=lambda arch: arch.name)
@pytest.mark.parametrize(("experts", "N", "K"), [(128, 1536, 2048), (8, 4096, 14336), (1, 16, 16)])
def test_ranges_follow_one_another_from_where_the_gemv_ends(arch, experts, N, K):
    problem = GroupedProblem(N, K, experts=experts)
    ranges = GroupedGemm(problem).ranges(N, K, arch)
    assert ranges[0].low == max_rows(experts) + 1 and ranges[-1].high is None
    assert all(lower.high + 1 == upper.low for lower, upper in pairwise(ranges))
    # Experts with few rows get low tiles
    first, last = (
        choose_config(GroupedProblem(N, K, part, experts=experts), arch) for part in (ranges[0], ranges[-1])
    )
    assert first.block_m <= last.block_m
    assert all(config.shared_bytes() <= arch.shared_per_block for config in (first, last))


def check_machine_code(arch, problem, config):
    target = with_host(cuda_target(arch).target)
    (launch,) = GroupedGemm(problem, config).apply(problem, target).launches
    assert launch.arguments == ("x", "words", "scales", "global_scale", "indptr", "out")
    lowered = lower_launch(launch, "main", target)
    code = compile_cached(lowered.source, lowered.arch)
    (usage,) = code.usage.values()
    assert usage.spill_stores == usage.spill_loads == usage.stack == 0
    assert usage.registers * config.threads <= ARCHS[arch].registers_per_sm
    counts = count_instructions(sass(code.fatbin, arch))
    assert any(name.startswith("HMMA.16816.F32") for name in counts)
    assert any(name.startswith("LDGSTS") and "128" in name for name in counts)
    # A warp finds its tile by votes and shuffles, and blocks without one end early
    assert counts.keys() & {"VOTE.ANY", "VOTEU.ANY"} and any(name.startswith("SHFL.UP") for name in counts)
    assert sum(count for name, count in counts.items() if name == "EXIT") >= 2


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_machine_code_of_odd_shapes(arch):
    problem = GroupedProblem(40, 272, experts=9, x_dtype="float16", out_dtype="float16", activation=None)
    check_machine_code(arch, problem, MmaConfig(32, 32, 32, 32, k_warps=4, stages=4))


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "rows"), [("sm_80", 48), ("sm_86", 128), ("sm_89", 1024), ("sm_90", 128)])
def test_machine_code_of_what_is_chosen(arch, rows):
    problem = GroupedProblem(1536, 2048, MRange(rows * 128, rows * 128), experts=128)
    check_machine_code(arch, problem, choose_config(problem, ARCHS[arch]))


def test_one_kernel_for_all_ranges_of_a_configuration():
    config = MmaConfig(32, 64, 32, 32)
    target = cuda_target("sm_89").target
    kernels = [
        GroupedGemm(SMALL, config).apply(GroupedProblem(64, 64, M, experts=8), target)
        for M in (MRange(200), MRange(300, 300))
    ]
    assert kernels[0] is kernels[1] and kernels[0].name == "gemm_mma_grouped_32x64x128_w32x32_s2_t2"


def test_numbers_on_the_cpu():
    problem = GroupedProblem(40, 272, experts=9, activation=None)
    target = cuda_target("sm_80").target
    rule = GroupedGemm(problem, MmaConfig(32, 32, 32, 32, k_warps=2, stages=3))
    run, experts = kernel_on_host(rule.apply(problem, target), target), Experts.random(problem)
    for M, routing in zip((1, 17, 40, 100), ROUTINGS, strict=True):
        operands, expected = experts.case(M, routing)
        found = run(operands, empty(problem, M))
        check(found, expected)
        assert run(operands, empty(problem, M), late=False, order=1).tobytes() == found.tobytes()
