from dataclasses import replace
from itertools import pairwise

import pytest
from simulated_runner import SimulatedRunner
from tuning_records import record

from nvfp4_tvm.arch import ARCHS
from nvfp4_tvm.schedules.base import MatmulProblem, MRange
from nvfp4_tvm.schedules.dispatch import kernels_for
from nvfp4_tvm.schedules.records import Database
from nvfp4_tvm.schedules.spaces import SPACES, space_of
from nvfp4_tvm.target import resolve_target
from nvfp4_tvm.tuning.driver import Tuned
from nvfp4_tvm.tuning.search import Settings, dispatched, ranges_of, search
from nvfp4_tvm.tuning.trial import Candidate

PROBLEM = MatmulProblem(4096, 4096)
SETTINGS = Settings(trials=8, ranges=ranges_of((8, 16, 64, 512)))


def run(settings=SETTINGS, arch="sm_90", problem=PROBLEM, cost=None):
    """Search with the simulated runner; return the findings and the trials in order."""
    runner = SimulatedRunner(ARCHS[arch])
    generator, trials = search(problem, ARCHS[arch], settings), []
    outcomes = None
    while True:
        try:
            batch = generator.send(outcomes)
        except StopIteration as stop:
            return stop.value, trials
        trials += batch
        outcomes = dict(zip(batch, runner.run(batch, None), strict=True))
        if cost is not None:
            outcomes = {t: replace(o, time_us=cost(t), error=None) for t, o in outcomes.items()}


def test_ranges_cover_every_m():
    ranges = ranges_of((1, 8))
    assert ranges == (MRange(1, 1), MRange(2, 8), MRange(9))


@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_89", "sm_90"])
def test_findings(arch):
    findings, trials = run(arch=arch)
    # Where no kernel is worth a record, there is no finding: predictions ask for a greater gain than measurements
    assert findings and (findings[0].M.low == 1 or arch != "sm_90")
    for lower, upper in pairwise(findings):
        assert lower.M.high < upper.M.low
        assert (lower.candidate, lower.own) != (upper.candidate, upper.own) or lower.M.high + 1 < upper.M.low
    for finding in findings:
        space = space_of(finding.candidate.family)
        assert space.legal(finding.candidate.config, 4096, 4096, finding.M, ARCHS[arch])
        assert finding.outcome.error is None and finding.default is not None
        if finding.default_outcome is not None and finding.default_outcome.error is None:
            assert finding.outcome.cost <= 1.05 * finding.default_outcome.cost
    by_range = [t for t in trials if t.round == 0 and t.rows == 512]
    assert len(by_range) == len(set(by_range)) == 8
    # The kernel that is used without a record is tried first
    assert by_range[0].candidate.config == space_of(by_range[0].candidate.family).default(
        4096, 4096, MRange(65, 512), ARCHS[arch]
    )


@pytest.mark.parametrize(
    ("N", "K", "M", "family"),
    [
        (4096, 4096, MRange(9, 16), "gemv"),
        (4096, 4096, MRange(65, 96), "gemm_cluster"),
        (21504, 5376, MRange(289, 304), "gemm_wgmma"),
        (4096, 4096, MRange(2049), "gemm_wgmma_ss"),
    ],
)
def test_what_runs_without_a_record_is_the_dispatchs_choice(nothing_shipped, N, K, M, family):
    problem = MatmulProblem(N, K, M)
    generator = search(MatmulProblem(N, K), ARCHS["sm_90"], Settings(trials=2, ranges=(M,)))
    first = next(generator)[0].candidate
    kernels = kernels_for(problem, resolve_target("cuda:sm_90").target)
    space = space_of(family)
    assert first.family == family
    expected = space.rule(first.config).apply(
        replace(problem, dynamic=True), resolve_target("cuda:sm_90").target
    )
    assert kernels[-1][2].name == expected.name


def test_the_same_every_time_and_another_seed_differs():
    (first, trials), (again, same) = run(), run()
    assert first == again and trials == same
    assert set(run(replace(SETTINGS, seed=1))[1]) != set(trials)


def test_nothing_wrong_wins():
    _, trials = run(replace(SETTINGS, trials=40))
    runner = SimulatedRunner(ARCHS["sm_90"])
    assert any(runner.run([trial], None)[0].error for trial in trials)
    assert all(runner.run([t], None)[0].error is None for t in trials if t.round == 2)


def test_fixed_ranges_stay():
    ranges = (MRange(1, 8), MRange(9, 16), MRange(20, 99))
    findings, trials = run(replace(SETTINGS, ranges=ranges, fixed=True))
    assert tuple(finding.M for finding in findings) == ranges
    assert max(trial.round for trial in trials) == 1


def test_one_kernel_where_none_is_worth_another():
    findings, _ = run(
        replace(SETTINGS, families=("gemm_mma",), ranges=ranges_of((64, 96, 512))[1:]), cost=lambda t: 10.0
    )
    assert len(findings) == 1 and findings[0].M == MRange(65)


def test_crossovers_are_found_between_bounds():
    small, large = 64, 96  # the smaller tile is the better one below M = 300

    def cost(trial):
        tile = trial.candidate.config.block_m
        if tile == small:
            return 1.0 + trial.rows / 100
        return 4.0 if tile == large else 99.0

    settings = Settings(trials=200, ranges=(MRange(65, 256), MRange(257, 512)), families=("gemm_mma",))
    findings, trials = run(settings, arch="sm_89", cost=cost)
    assert [f.candidate.config.block_m for f in findings] == [small, large]
    assert abs(findings[1].M.low - 300) <= 32
    assert {t.rows for t in trials if t.round == 2} <= set(range(257, 512))


def test_families_can_be_left_out():
    _, trials = run(replace(SETTINGS, families=("gemv", "gemm_mma")))
    assert {trial.candidate.family for trial in trials} == {"gemv", "gemm_mma"}
    assert {trial.candidate.family for trial in run()[1]} == set(SPACES)


def test_what_near_shapes_take_is_tried_after_the_default():
    M = MRange(65, 512)
    near = Database(
        (
            record(4096, 8192, MRange(65, 511), "gemm_mma", "sm_90"),
            record(4096, 5120, M, "gemm_mma", "sm_90", 5),
        )
    )
    with_near = replace(SETTINGS, near=near)
    tried = [t.candidate for t in run(with_near)[1] if t.round == 0 and t.rows == 512]
    without = [t.candidate for t in run()[1] if t.round == 0 and t.rows == 512]
    assert tried[0] == without[0]
    # Nearest first; a record that does not hold for the rows says nothing
    assert tried[1] == Candidate("gemm_mma", near.records[1].config)
    assert len(tried) == len(set(tried)) == 8
    other = run(replace(with_near, families=("gemv", "gemm_wgmma")))[1]
    assert {t.candidate.family for t in other} <= {"gemv", "gemm_wgmma"}


def test_a_winner_leaves_the_rows_it_is_not_best_for():
    M, arch = MRange(257, 512), ARCHS["sm_90"]
    own = {rows: dispatched(PROBLEM, MRange(rows, rows), arch) for rows in (257, 377)}
    default = dispatched(PROBLEM, M, arch)

    def cost(trial):  # the winner at 512 rows is slower than what runs without a record below 300
        if trial.candidate == (own.get(trial.rows) or default):
            return 10.0
        return 9.0 if trial.rows > 300 else 11.0

    (finding,), trials = run(replace(SETTINGS, ranges=(M,)), cost=cost)
    # 257 rows need a tile that is as fast with 280 rows
    low, last = finding.M.low, [dispatched(PROBLEM, MRange(M, M), arch) for M in (280, finding.M.low)]
    assert 280 < low < 377 and last[0] == own[257] != last[1]
    assert finding.M.high == 512 and not finding.own and finding.candidate != default
    assert {t.rows for t in trials if t.round == 3} == {257, 377}


def test_the_default_needs_no_record():
    (finding,), _ = run(replace(SETTINGS, ranges=(MRange(65, 512),)), cost=lambda trial: 10.0)
    assert finding.own and finding.candidate == finding.default
    assert Tuned(PROBLEM, (finding,)).records("sm_90", "measured", "Some GPU") == []
