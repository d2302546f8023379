import itertools

import pytest

from nvfp4_tvm.arch import ARCHS
from nvfp4_tvm.schedules.base import MRange
from nvfp4_tvm.schedules.gemm_mma_choice import (
    BOUNDS,
    CANDIDATES,
    MAX_SUMS,
    MIN_M,
    START,
    choose_config,
    predicted_time,
    ranges,
)

SHAPES = [(43008, 5376), (5376, 21504), (4096, 4096), (8192, 28672), (8, 16), (100, 2880), (24, 48)]
ALL = pytest.mark.parametrize("arch", ARCHS.values(), ids=lambda arch: arch.name)


@ALL
@pytest.mark.parametrize(("N", "K"), SHAPES)
def test_ranges(N, K, arch):
    chosen = ranges(N, K, arch)
    assert chosen[0].low == MIN_M and chosen[-1].high is None
    assert all(a.high + 1 == b.low for a, b in itertools.pairwise(chosen))
    configs = [choose_config(N, K, part, arch) for part in chosen]
    # Neighbours differ, or they would be one range
    assert all(a != b for a, b in itertools.pairwise(configs))
    for part, config in zip(chosen, configs, strict=True):
        assert config.shared_bytes() <= arch.shared_per_block
        # A problem for one M of the range gets the same kernel
        for M in (part.low, part.high or 100_000):
            assert choose_config(N, K, MRange(M, M), arch) == config
        if config.splits > 1:
            assert part.high is not None and config.splits * part.high * N * 4 <= MAX_SUMS


def test_a_problem_of_several_ranges_gets_the_kernel_of_its_largest_m():
    arch = ARCHS["sm_90"]
    assert choose_config(21504, 5376, MRange(17), arch) == choose_config(21504, 5376, MRange(9999), arch)
    assert choose_config(21504, 5376, MRange(17, 32), arch) != choose_config(21504, 5376, MRange(17), arch)


@ALL
def test_small_weights_need_few_kernels(arch):
    assert len({choose_config(64, 64, part, arch) for part in ranges(64, 64, arch)}) <= 2


def test_tiles_grow_with_m():
    arch = ARCHS["sm_90"]
    small, large = (choose_config(21504, 5376, MRange(M, M), arch) for M in (20, 5000))
    assert small.block_m == 32 and large.block_m == 128


def test_split_where_n_alone_does_not_fill_the_card():
    arch = ARCHS["sm_90"]
    assert choose_config(5376, 21504, MRange(32, 32), arch).splits > 1
    assert choose_config(43008, 5376, MRange(20, 20), arch).splits == 1


def test_every_candidate_fits_the_smallest_shared_memory():
    for candidate in CANDIDATES:
        assert candidate.config.shared_bytes() <= min(arch.shared_per_block for arch in ARCHS.values())


@pytest.mark.parametrize(
    ("M", "measured"),
    # H200, N = 21504, K = 5376, 128 x 128 tiles
    [(256, 165.5), (482, 316.9), (777, 460.6), (2048, 1070.8)],
)
def test_the_model_against_measurements(M, measured):
    time = predicted_time(CANDIDATES[0], 21504, 5376, M, 132)
    assert time == pytest.approx(measured, rel=0.05)
    assert time > START


def test_bounds_are_in_order():
    assert list(BOUNDS) == sorted(set(BOUNDS)) and BOUNDS[0] > MIN_M
