from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import tvm
from relax_modules import NUMPY, Weight, activations, assert_rounded_once
from tvm import tirx

from nvfp4_tvm import layout
from nvfp4_tvm.arch import get_arch
from nvfp4_tvm.codegen.matmul import build_matmul
from nvfp4_tvm.errors import TargetError
from nvfp4_tvm.schedules import dispatch as dispatch_module
from nvfp4_tvm.schedules.base import KernelRule, MatmulProblem, MRange
from nvfp4_tvm.schedules.dispatch import TABLES, dispatch, intersect, kernels_for
from nvfp4_tvm.schedules.gemm_cluster_choice import choices as cluster_choices
from nvfp4_tvm.schedules.kernel import CudaKernel
from nvfp4_tvm.target import resolve_target

LLVM = resolve_target("llvm").target
PROBLEM = MatmulProblem(48, 64, x_dtype="float32", out_dtype="float32")


@pytest.mark.parametrize("name", sorted(TABLES))
def test_tables_cover_every_m_once(name):
    ranges = [m_range for m_range, _ in TABLES[name]]
    assert ranges[0].low == 1 and ranges[-1].high is None
    for lower, upper in pairwise(ranges):
        assert lower.high + 1 == upper.low


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (MRange(1, 8), MRange(4), MRange(4, 8)),
        (MRange(), MRange(), MRange()),
        (MRange(1, 3), MRange(4, 9), None),
        (MRange(5), MRange(7, 7), MRange(7, 7)),
    ],
)
def test_intersect(a, b, expected):
    assert intersect(a, b) == intersect(b, a) == expected


@pytest.mark.parametrize(
    ("cpu", "M", "expected"),
    [
        *(("haswell", M, "cpu-gemv") for M in (1, 2, 5, 8)),
        *(("haswell", M, "cpu-gemm") for M in (9, 300)),
        *(("sapphirerapids", M, "cpu-gemv") for M in (1, 2, 4)),
        *(("sapphirerapids", M, "cpu-gemm-amx") for M in (5, 8, 9, 300)),
    ],
)
def test_static_m_gets_the_kernel_of_its_range(cpu, M, expected):
    target = resolve_target(f"llvm -mcpu={cpu} -mtriple=x86_64-linux-gnu").target
    ((_, rule, function),) = kernels_for(replace(PROBLEM, M=MRange(M, M)), target)
    assert rule.name == expected
    assert int(function.params[0].shape[0]) == M


def intended(arch, N, K, M, x_dtype):
    """The family that gets M of the small weights below."""
    if x_dtype == "float32":
        return "gemm_plain"
    if M <= 32:
        return "gemv"
    if arch != "sm_90":
        return "gemm_mma"
    few = any(M in m_range for m_range, _ in cluster_choices(N, K, get_arch(arch)))
    return "gemm_cluster" if few else "gemm_wgmma"


@pytest.mark.usefixtures("nothing_shipped")
@pytest.mark.parametrize(
    ("arch", "N", "K", "x_dtype"),
    [
        ("sm_80", 4096, 4096, "bfloat16"),
        ("sm_86", 24, 48, "float16"),
        ("sm_89", 100, 2880, "bfloat16"),
        ("sm_90", 4096, 4096, "bfloat16"),
        ("sm_90", 24, 48, "float16"),
        *((arch, 100, 2880, "float32") for arch in ("sm_80", "sm_86", "sm_89", "sm_90")),
    ],
)
def test_every_m_gets_the_intended_family(arch, N, K, x_dtype):
    target = resolve_target(f"cuda:{arch}").target
    chosen = kernels_for(MatmulProblem(N, K, x_dtype=x_dtype), target)
    assert chosen[0][0].low == 1 and chosen[-1][0].high is None
    assert all(lower.high + 1 == upper.low for (lower, *_), (upper, *_) in pairwise(chosen))
    for M in range(1, 301):
        (found,) = (rule.name for m_range, rule, _ in chosen if M in m_range)
        assert found == intended(arch, N, K, M, x_dtype), M


def test_an_unknown_architecture_is_refused():
    target = tvm.target.Target({"kind": "cuda", "arch": "sm_75"})
    with pytest.raises(TargetError, match="sm_75"):
        kernels_for(PROBLEM, target)


class _Split(KernelRule):
    """A family with configurations for some ranges, one of which it then refuses."""

    name = "split"

    def ranges(self, N, K, arch):
        return [MRange(1, 2), MRange(5, 8), MRange(9, 20), MRange(40, 50)]

    def apply(self, problem, target):
        if problem.M.high == 20:
            return self.refuse(problem, "on principle")
        return CudaKernel(f"split_{problem.M.low}", ())


class _Rest(KernelRule):
    name = "rest"

    def apply(self, problem, target):
        return CudaKernel("rest", ())


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (
            MRange(),
            "1..2 split_1, 3..4 rest, 5..8 split_5, 9..16 split_9, 17..20 rest, 21..39 rest, 40..50 split_40, "
            "51.. rest",
        ),
        (MRange(3, 6), "3..4 rest, 5..6 split_5"),
        (MRange(6, 6), "6 split_6"),
        (MRange(45), "45..50 split_45, 51.. rest"),
        (MRange(60, 70), "60..70 rest"),
    ],
)
def test_a_rule_splits_its_range_and_leaves_gaps_to_the_next(monkeypatch, asked, expected):
    rules = (_Split(), _Rest())
    monkeypatch.setitem(dispatch_module.TABLES, "sm_89", ((MRange(1, 16), rules), (MRange(17), rules)))
    chosen = kernels_for(replace(PROBLEM, M=asked), resolve_target("cuda:sm_89").target)
    assert ", ".join(f"{m_range} {kernel.name}" for m_range, _, kernel in chosen) == expected


def test_machine_code_is_not_one_prim_func():
    with pytest.raises(TargetError, match="target cuda: its kernels are built by build_matmul"):
        dispatch(PROBLEM, resolve_target("cuda:sm_89").target)


@pytest.mark.gpu
@pytest.mark.skipif(not tvm.cuda(0).exist, reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(("N", "K"), [(24, 48), (200, 528)])
def test_every_m_gets_the_right_answer_on_a_gpu(N, K, dtype):
    rng = np.random.default_rng(N)
    weight = Weight.random(rng, N, K)
    if dtype == "float16":
        weight.rows[:] *= np.float32(1e-6)  # results within float16
    packed = layout.pack(*weight.arrays())
    gpu = tvm.cuda(0)
    operands = [tvm.runtime.tensor(a, gpu) for a in (packed.words, packed.scales, packed.global_scale)]
    built = build_matmul(MatmulProblem(N, K, x_dtype=dtype, out_dtype=dtype), resolve_target("auto").target)
    for M in range(1, 301):
        x = activations(rng, (M, K), dtype)
        out = tvm.runtime.tensor(np.full((M, N), np.nan).astype(NUMPY[dtype]), gpu)
        scratch = tvm.runtime.tensor(np.full(max(built.workspace_bytes(M), 16), 0xFF, np.uint8), gpu)
        built.function(tvm.runtime.tensor(x, gpu), *operands, out, scratch)
        assert_rounded_once(out.numpy(), x, weight)


def test_dispatch_keeps_one_symbolic_m():
    function = dispatch(PROBLEM, LLVM)
    assert isinstance(function.params[0].shape[0], tirx.Var)
    assert function.params[0].shape[0].same_as(function.params[-1].shape[0])


class _Mark(KernelRule):
    """A kernel that writes its mark everywhere, so that a test sees which branch ran."""

    def __init__(self, mark):
        self.name, self.mark = f"mark{mark}", float(mark)

    def apply(self, problem, target):
        from tvm import te

        from nvfp4_tvm.schedules.gemm_plain import matmul_prim_func

        arguments = matmul_prim_func(problem).params
        x, *rest, _ = (
            te.placeholder([problem.static_M or tirx.Var("M", "int64"), problem.K], "float32")
            if i == 0
            else te.placeholder(a.shape, str(a.dtype))
            for i, a in enumerate(arguments)
        )
        out = te.compute((x.shape[0], problem.N), lambda m, n: x[m, 0] * 0.0 + self.mark)
        return te.create_prim_func([x, *rest, out])


def test_each_m_takes_the_branch_of_its_range(monkeypatch):
    ranges = [MRange(1, 1), MRange(2, 4), MRange(5, 16), MRange(17)]
    table = tuple((m_range, (_Mark(i),)) for i, m_range in enumerate(ranges))
    monkeypatch.setitem(dispatch_module.TABLES, "llvm", table)
    function = tvm.compile(
        tvm.IRModule({"main": dispatch(PROBLEM, LLVM).with_attr("global_symbol", "main")}), LLVM
    )
    packed = [
        tvm.runtime.tensor(np.zeros([int(e) for e in p.shape], str(p.dtype)))
        for p in dispatch(PROBLEM, LLVM).params[1:-1]
    ]
    for M in range(1, 301):
        out = tvm.runtime.tensor(np.full((M, PROBLEM.N), np.nan, np.float32))
        function["main"](tvm.runtime.tensor(np.ones((M, PROBLEM.K), np.float32)), *packed, out)
        expected = next(i for i, m_range in enumerate(ranges) if M in m_range)
        assert (out.numpy() == expected).all(), M


def test_an_empty_batch_does_nothing():
    function = tvm.compile(
        tvm.IRModule({"main": dispatch(PROBLEM, LLVM).with_attr("global_symbol", "main")}), LLVM
    )
    arrays = [
        np.zeros([0 if isinstance(e, tirx.Var) else int(e) for e in p.shape], str(p.dtype))
        for p in dispatch(PROBLEM, LLVM).params
    ]
    function["main"](*map(tvm.runtime.tensor, arrays))


def test_a_range_nobody_covers_is_refused(monkeypatch):
    class Never(KernelRule):
        name = "never"

        def apply(self, problem, target):
            return self.refuse(problem, "on principle")

    monkeypatch.setitem(dispatch_module.TABLES, "llvm", ((MRange(), (Never(),)),))
    with pytest.raises(TargetError, match="no kernel applies"):
        dispatch(PROBLEM, LLVM)
