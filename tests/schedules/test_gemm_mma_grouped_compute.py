"""The block computation, unscheduled, on llvm."""

import pytest
import tvm
from grouped_problems import ROUTINGS, Experts, check, empty
from relax_modules import tensor

from nvfp4_tvm.schedules.gemm_mma_config import MmaConfig
from nvfp4_tvm.schedules.gemm_mma_grouped_compute import TILE, grouped_gemm_mma
from nvfp4_tvm.schedules.grouped import GroupedProblem

CONFIG = MmaConfig(16, 32, 16, 32, token_tiles=1)


@pytest.mark.parametrize(
    ("problem", "config"),
    [
        (GroupedProblem(40, 144, experts=3), CONFIG),
        (
            GroupedProblem(48, 80, x_dtype="float16", out_dtype="float32", experts=5, activation="silu_mul"),
            CONFIG,
        ),
        (GroupedProblem(33, 48, experts=1), CONFIG),
    ],
    ids=str,
)
def test_numbers(problem, config):
    function = grouped_gemm_mma(problem, config, cuda=False)
    compiled = tvm.compile(tvm.IRModule({"main": function}), target="llvm")["main"]
    experts = Experts.random(problem)
    for M, routing in zip((1, 3, 33, 50), ROUTINGS, strict=True):
        operands, expected = experts.case(M, routing)
        out = tensor(empty(problem, M))
        compiled(*map(tensor, operands.values()), out)
        check(out.numpy(), expected)


def test_only_the_cuda_form_calls_cuda():
    problem = GroupedProblem(40, 144, experts=3)
    cuda, portable = (grouped_gemm_mma(problem, CONFIG, cuda=cuda).script() for cuda in (True, False))
    assert "nvfp4_expert_tile_3_16" in cuda and "nvfp4_expert_tile" not in portable
    assert all(f'T.sblock("{TILE}")' in text for text in (cuda, portable))
