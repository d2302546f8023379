import logging

import numpy as np
import pytest
import tvm
from cuda_on_host import check_rows, kernel_on_host
from mma_problems import Case
from relax_modules import tensor

from nvfp4_tvm import layout
from nvfp4_tvm.arch import ARCHS
from nvfp4_tvm.schedules.base import MatmulProblem, MRange
from nvfp4_tvm.schedules.gemm_mma import GemmMma, add_splits
from nvfp4_tvm.schedules.gemm_mma_choice import choose_config
from nvfp4_tvm.schedules.gemm_mma_config import MmaConfig
from nvfp4_tvm.schedules.gemv import Gemv
from nvfp4_tvm.schedules.lowering import MMA_PIPELINE
from nvfp4_tvm.target import cuda_target, resolve_target

SPLIT = MmaConfig(32, 64, 32, 32, splits=3, token_tiles=1)


@pytest.mark.parametrize(
    ("rule", "problem", "target", "why"),
    [
        (GemmMma(), MatmulProblem(64, 64, MRange(17)), "llvm", "not cuda"),
        (GemmMma(), MatmulProblem(64, 64, MRange(17), "float32"), "cuda:sm_89", "float32"),
        (GemmMma(), MatmulProblem(64, 64, MRange(16)), "cuda:sm_89", "below 17"),
        (
            GemmMma(MmaConfig(128, 128, 64, 64, stages=3)),
            MatmulProblem(64, 64, MRange(17)),
            "cuda:sm_89",
            "shared memory, sm_89 has 101376",
        ),
    ],
)
def test_refusals(rule, problem, target, why, caplog):
    with caplog.at_level(logging.DEBUG, logger="nvfp4_tvm"):
        assert rule.apply(problem, resolve_target(target).target) is None
    (record,) = caplog.records
    assert why in record.getMessage() and "gemm_mma" in record.getMessage()


def test_what_does_not_fit_one_architecture_may_fit_another():
    rule = GemmMma(MmaConfig(128, 128, 64, 64, stages=3))
    assert rule.apply(MatmulProblem(64, 64, MRange(17)), cuda_target("sm_80").target) is not None


def test_one_launch_with_the_operands_of_the_problem():
    problem = MatmulProblem(64, 64, MRange(17), bias=True, residual=True)
    kernel = GemmMma(MmaConfig(32, 64, 32, 32)).apply(problem, cuda_target("sm_89").target)
    (launch,) = kernel.launches
    assert launch.arguments == ("x", "words", "scales", "global_scale", "bias", "residual", "out")
    assert launch.pipeline == "mma" and not launch.arch_specific and not kernel.workspaces
    assert kernel.name == "gemm_mma_32x64x128_w32x32_s2_t2"


def test_the_range_of_m_never_enters_the_kernel():
    for low, high in ((17, None), (20, 20)):
        problem = MatmulProblem(64, 64, MRange(low, high))
        (launch,) = GemmMma().apply(problem, cuda_target("sm_89").target).launches
        M = launch.function.params[0].shape[0]
        assert isinstance(M, tvm.tirx.Var) and M.ty.dtype == "int64"


def test_ranges_of_the_rule_have_one_configuration_each():
    arch = ARCHS["sm_89"]
    for part in GemmMma().ranges(21504, 5376, arch):
        kernel = GemmMma().apply(MatmulProblem(21504, 5376, part), cuda_target("sm_89").target)
        assert choose_config(21504, 5376, part, arch).name in kernel.name
    config = MmaConfig(32, 64, 32, 32)
    assert list(GemmMma(config).ranges(64, 64, arch)) == [MRange(17)]


@pytest.mark.parametrize(
    "problem",
    [
        MatmulProblem(25, 400, MRange(17), bias=True),
        MatmulProblem(48, 400, MRange(17), "float16", "float16", activation="silu_mul", residual=True),
    ],
    ids=str,
)
def test_split_launches_on_the_cpu(problem):
    # Both launches of a split kernel, the first unscheduled
    from nvfp4_tvm.schedules.gemm_mma_compute import gemm_mma

    M = 18
    case = Case.random(problem, M)
    sums = tensor(np.full((3, M, layout.global_scale_shape(problem.N)[0]), np.nan, np.float32))
    compiled = tvm.compile(tvm.IRModule({"main": gemm_mma(problem, SPLIT)}), target="llvm")["main"]
    compiled(*(tensor(case.operands[name]) for name in ("x", "words", "scales")), sums)
    rest = [tensor(v) for k, v in case.operands.items() if k in ("global_scale", "bias", "residual")]
    out = tensor(case.empty(problem))
    unbound = add_splits(problem, SPLIT, scheduled=False)
    tvm.compile(tvm.IRModule({"main": unbound}), target="llvm")["main"](sums, *rest, out)
    case.check(out.numpy())


def test_kernels_of_a_split():
    kernel = GemmMma(SPLIT).apply(MatmulProblem(40, 400, MRange(17)), cuda_target("sm_89").target)
    gemm, add = kernel.launches
    assert gemm.arguments == ("x", "words", "scales", "sums") and gemm.pipeline == "mma"
    assert add.arguments == ("sums", "global_scale", "out") and add.pipeline == "s_tir"
    (workspace,) = kernel.workspaces
    assert (workspace.name, workspace.dtype) == ("sums", "float32")
    assert tuple(map(int, workspace.shape(5))) == (3, 5, 48)
    assert Gemv.name not in kernel.name


GPU_CASES = [
    (MatmulProblem(8, 16, MRange(17)), MmaConfig(32, 64, 32, 32, k_warps=4, stages=4)),
    (MatmulProblem(24, 48, MRange(17), "float16", "float16"), MmaConfig(16, 32, 16, 32, token_tiles=1)),
    (MatmulProblem(101, 2880, MRange(17), bias=True, residual=True), MmaConfig(64, 64, 32, 32)),
    (
        MatmulProblem(512, 2880, MRange(17), "float16", "float16", bias=True, activation="silu_mul"),
        MmaConfig(64, 128, 64, 32, block_k=64, stages=3),
    ),
    (
        MatmulProblem(256, 1040, MRange(17), out_dtype="float32", residual=True, activation="silu_mul"),
        MmaConfig(32, 64, 32, 32, k_warps=2, block_k=256),
    ),
    (MatmulProblem(520, 1040, MRange(17), bias=True), MmaConfig(64, 64, 64, 32, splits=3)),
    (MatmulProblem(1000, 1040, MRange(17), "float16", "float32"), MmaConfig(128, 128, 128, 32)),
    (MatmulProblem(200, 1040, MRange(17), residual=True), MmaConfig(112, 128, 112, 32)),
    (MatmulProblem(200, 1040, MRange(17)), MmaConfig(64, 128, 64, 64, k_warps=2, splits=6)),
]


@pytest.mark.gpu
@pytest.mark.skipif(not tvm.cuda(0).exist, reason="needs an NVIDIA GPU")
@pytest.mark.parametrize(
    ("problem", "config"), GPU_CASES, ids=lambda value: getattr(value, "name", str(value))
)
def test_numbers_on_the_gpu(problem, config):
    device = tvm.cuda(0)
    arch = f"sm_{device.compute_version.replace('.', '')}"
    target = tvm.target.Target({"kind": "cuda", "arch": arch}, host="llvm")
    kernel = GemmMma(config).apply(problem, target)
    assert kernel is not None
    functions = []
    for launch in kernel.launches:
        module = tvm.IRModule({"main": launch.function.with_attr("global_symbol", "main")})
        pipeline = MMA_PIPELINE if launch.pipeline == "mma" else launch.pipeline
        functions.append(tvm.compile(module, target, tir_pipeline=pipeline)["main"])
    for M in (17, 33, 100, 300):
        case = Case.random(problem, M)
        memory = {name: tvm.runtime.tensor(array, device) for name, array in case.operands.items()}
        for workspace in kernel.workspaces:
            shape = tuple(map(int, workspace.shape(M)))
            memory[workspace.name] = tvm.runtime.tensor(np.full(shape, np.nan, np.float32), device)
        outputs = []
        for _ in range(2):
            memory["out"] = tvm.runtime.tensor(case.empty(problem), device)
            for launch, function in zip(kernel.launches, functions, strict=True):
                function(*(memory[name] for name in launch.arguments))
            outputs.append(memory["out"].numpy())
        case.check(outputs[0])
        assert outputs[0].tobytes() == outputs[1].tobytes()


@pytest.mark.parametrize(
    ("problem", "config"),
    [
        (MatmulProblem(24, 48, MRange(17), "float16", "float16"), MmaConfig(16, 32, 16, 32, token_tiles=1)),
        (
            MatmulProblem(101, 528, MRange(17), bias=True, residual=True),
            MmaConfig(32, 64, 32, 32, k_warps=4, stages=4),
        ),
        (
            MatmulProblem(64, 400, MRange(17), "float16", "float16", activation="silu_mul"),
            MmaConfig(64, 128, 64, 32, block_k=64, stages=3),
        ),
        (MatmulProblem(40, 1040, MRange(17)), MmaConfig(64, 64, 64, 32, splits=3)),
    ],
    ids=str,
)
def test_numbers_on_the_cpu(problem, config):
    """The tensorized schedule's generated source."""
    target = cuda_target("sm_80").target
    run = kernel_on_host(GemmMma(config).apply(problem, target), target)
    check_rows(run, problem, (17, 33, 100))
