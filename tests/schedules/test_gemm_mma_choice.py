import itertools
from dataclasses import replace

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
    assert len({choose_config(64, 64, part, arch) for part in ranges(64, 64, arch)}) <= 3


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
    ("tile", "M", "measured"),
    # H200, kernels built for sm_89, N = 21504, K = 5376; the last has SMs with one block only
    [
        *(((128, 128), 256, 159.7), ((128, 128), 482, 310.9), ((128, 128), 2048, 1059.8)),
        *(((112, 128), 300, 187.9), ((112, 128), 777, 417.5), ((64, 192), 482, 293.7), ((64, 192), 64, 52.1)),
    ],
)
def test_the_model_against_measurements(tile, M, measured):
    (candidate,) = (c for c in CANDIDATES if (c.config.block_m, c.config.block_n) == tile)
    time = predicted_time(candidate, 21504, 5376, M, 132)
    assert time == pytest.approx(measured, rel=0.03)
    assert time > START


def test_a_range_takes_a_kernel_that_another_range_needs_anyway():
    arch = ARCHS["sm_89"]
    parts = ranges(43008, 5376, arch)
    assert len({choose_config(43008, 5376, part, arch) for part in parts}) < len(parts)


def test_bounds_are_in_order():
    assert list(BOUNDS) == sorted(set(BOUNDS)) and BOUNDS[0] > MIN_M


@pytest.mark.parametrize("arch", ["sm_80", "sm_86"])
def test_tiles_that_spill_are_left_out(arch):
    spilling = [c.config for c in CANDIDATES if arch in c.spills_on]
    assert spilling
    for N, K in ((21504, 5376), (4096, 4096), (3840, 15360)):
        for part in ranges(N, K, ARCHS[arch]):
            assert replace(choose_config(N, K, part, ARCHS[arch]), splits=1) not in spilling
