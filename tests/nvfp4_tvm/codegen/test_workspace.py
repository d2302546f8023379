import pytest
from hypothesis import given
from hypothesis import strategies as st
from tvm import tirx

from nvfp4_tvm.codegen.workspace import ALIGNMENT, Bytes, bound, exact, offsets
from nvfp4_tvm.errors import ShapeError
from nvfp4_tvm.schedules.base import MRange
from nvfp4_tvm.schedules.kernel import CudaKernel, Workspace


def kernel(*workspaces):
    return CudaKernel("k", (), tuple(Workspace(f"w{i}", d, s) for i, (d, s) in enumerate(workspaces)))


def tiles(size, *rest):
    """Rows rounded up to tiles, as a tiled copy of the activations wants them."""
    return lambda M: ((M + (size - 1)) // size, size, *rest)


def test_exact_is_the_sum_of_aligned_sizes():
    both = kernel(("float32", lambda M: (M, 100)), ("uint16", tiles(64, 7)))
    assert exact(both, 3) == 2048 + 1024
    assert exact(both, 65) == 26 * 1024 + 2 * 1024
    assert exact(kernel(), 5) == 0


def test_offsets_are_aligned_and_in_order():
    at, end = offsets(
        kernel(("uint8", lambda M: (5,)), ("float32", lambda M: (300,))), tirx.const(1, "int64")
    )
    assert [int(at["w0"]), int(at["w1"]), int(end)] == [0, ALIGNMENT, 3 * ALIGNMENT]


@given(
    low=st.integers(1, 40),
    length=st.integers(0, 30),
    tile=st.sampled_from([8, 64, 96, 256]),
    width=st.integers(1, 700),
    M=st.integers(0, 5000),
)
def test_the_bound_is_never_too_small(low, length, tile, width, M):
    high = low + length
    kernels = [
        (MRange(1, max(low - 1, 1)), kernel()),
        (MRange(low, high), kernel(("float32", lambda M: (3, M, width)), ("uint32", lambda M: (77,)))),
        (
            MRange(high + 1),
            kernel(
                ("uint16", tiles(tile, width)),
                ("float32", lambda M: (tirx.max(M - 5, 1), 2)),
                ("uint8", lambda M: (tirx.min(M, 128), 3)),
            ),
        ),
    ]
    linear = bound(kernels)
    for m_range, chosen in kernels:
        m = min(m_range.low + M, m_range.high or 10**9)
        assert exact(chosen, m) <= linear.slope * m + linear.constant


def test_bounded_ranges_have_no_slope():
    linear = bound([(MRange(1, 16), kernel(("float32", lambda M: (M, 1000))))])
    assert linear == Bytes(0, 64 * 1024)  # 16 rows of 4000 bytes and what aligning may add, in whole units


def test_rows_of_bounded_ranges_share_the_slope_of_the_last():
    rows = kernel(("uint16", lambda M: (M, 1024)))
    assert bound([(MRange(1, 1000), rows), (MRange(1001), rows)]) == Bytes(2048, 1024)


def test_no_workspace_is_no_bytes():
    assert bound([(MRange(), kernel())]) == Bytes(0, 0)


def test_the_expression_of_a_symbolic_m():
    M = tirx.Var("M", "int64")
    assert str(Bytes(384, 1024).of(M)) == "M * T.int64(384) + T.int64(1024)"
    assert int(Bytes(0, 2048).of(M)) == 2048


def test_a_size_that_is_not_linear_is_refused():
    with pytest.raises(ShapeError, match="expected sums of M, and products"):
        bound([(MRange(), kernel(("float32", lambda M: (M, M))))])
