import pytest

from nvfp4_tvm.schedules.base import MatmulProblem
from nvfp4_tvm.schedules.gemm_store_kernel import output_columns, packs_output


@pytest.mark.parametrize(
    ("problem", "packs", "columns"),
    [
        (MatmulProblem(104, 64), True, 16),
        (MatmulProblem(100, 64), False, 16),
        (MatmulProblem(104, 64, out_dtype="float32"), False, 16),
        (MatmulProblem(112, 64, activation="silu_mul"), True, 8),
    ],
)
def test_outputs(problem, packs, columns):
    assert packs_output(problem) == packs
    assert output_columns(problem) == columns
