import pytest
import torch

from nvfp4_tvm.arch import ARCHS
from nvfp4_tvm.errors import TargetError
from nvfp4_tvm.schedules.base import MRange
from nvfp4_tvm.schedules.spaces import SPACES
from nvfp4_tvm.tuning import cuda_runner
from nvfp4_tvm.tuning.build import compile_build
from nvfp4_tvm.tuning.cuda_runner import CudaRunner, check
from nvfp4_tvm.tuning.trial import Candidate, Trial, problem_of

ROWS = torch.tensor([0, 1, 3])


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    exact = torch.randn(4, 64, generator=generator, dtype=torch.float64)
    return exact, torch.empty(4, 64, dtype=torch.bfloat16), torch.empty(8, dtype=torch.uint8)


def verdict(case, compute):
    exact, out, workspace = case
    return check(lambda: compute(out, exact), out, workspace, ROWS, exact[ROWS], "bfloat16")


def test_a_right_result(case):
    assert verdict(case, lambda out, exact: out.copy_(exact)) is None


def test_wrong_results(case):
    def one_element(out, exact):
        out.copy_(exact)
        out[3, exact[3].abs().argmin()] += 0.002  # too little for the norm

    def unwritten(out, exact):
        out[:, :63].copy_(exact[:, :63])

    calls = []

    def different(out, exact):
        calls.append(1)
        out.copy_(exact * (1 + len(calls) / 64))

    assert "not finite, or elements left unwritten" in verdict(case, unwritten)
    assert "other bits" in verdict(case, different)
    assert "relative error 0.0" in verdict(case, lambda out, exact: out.copy_(exact * 1.01))
    assert "an element is off" in verdict(case, one_element)


def test_what_it_reads_of_the_workspace_is_poison(case):
    exact, out, workspace = case
    seen = []
    check(lambda: seen.append(workspace.clone()), out, workspace, ROWS, exact[ROWS], "bfloat16")
    assert all((poison == 0xFF).all() for poison in seen) and len(seen) == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_said():
    with pytest.raises(TargetError, match="no CUDA device 0 here"):
        CudaRunner(0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize(
    ("dtype", "epilogue"), [("bfloat16", "plain"), ("float16", "bias+residual+silu_mul")]
)
def test_times_of_right_kernels_on_a_gpu(dtype, epilogue):
    runner = CudaRunner(0)
    arch = ARCHS[runner.device.arch]
    assert runner.device.bandwidth > 1e11 and runner.device.source == "measured"
    problem = problem_of(512, 1024, dtype, epilogue)
    for family, space in SPACES.items():
        for M in (MRange(3, 3), MRange(100, 100)):
            for config in space.candidates(problem.N, problem.K, M, arch)[:2]:
                trial = Trial(problem, Candidate(family, config), M.low)
                library = compile_build(trial.build(arch), arch.name)
                (outcome,) = runner.run([trial], library)
                assert outcome.error is None, (family, config, outcome)
                assert 0.5 * outcome.floor_us < outcome.cost < 1000


def test_bars_are_those_of_the_dtypes():
    assert set(cuda_runner.ERROR) == {"bfloat16", "float16", "float32"}
