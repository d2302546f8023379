import logging
from itertools import pairwise

import pytest
from tuning_records import record

from nvfp4_tvm.arch import ARCHS
from nvfp4_tvm.schedules import tuned
from nvfp4_tvm.schedules.base import MatmulProblem, MRange
from nvfp4_tvm.schedules.dispatch import kernels_for
from nvfp4_tvm.schedules.records import Database
from nvfp4_tvm.schedules.spaces import space_of
from nvfp4_tvm.target import resolve_target

SM_89 = resolve_target("cuda:sm_89").target
PROBLEM = MatmulProblem(4096, 4096)


@pytest.fixture(autouse=True)
def each_test_says_what_is_shipped(nothing_shipped):
    """See the name."""


def names(problem=PROBLEM, target=SM_89):
    return [(str(m_range), kernel.name) for m_range, _, kernel in kernels_for(problem, target)]


def test_a_record_decides_and_the_rest_is_as_before():
    problem = MatmulProblem(4096, 4096, MRange(1, 32))
    before = names(problem)
    one = record(M=MRange(3, 6), which=7)
    with Database((one,)).active():
        after = dict(names(problem))
    config = f"gemv_m8_{one.config}"
    assert {M for M, name in after.items() if name == config} == {"3..6"}
    assert {"1..2", "7..8"} <= set(after)
    assert list(after.items())[-1] == before[-1] and names(problem) == before


def test_a_static_m_gets_the_record_of_its_range():
    one = record(M=MRange(17, 64), family="gemm_mma", which=4)
    with Database((one,)).active():
        ((m_range, kernel),) = names(MatmulProblem(4096, 4096, MRange(33, 33)))
    assert (m_range, kernel) == ("33", f"gemm_mma_{one.config.name}")


def test_the_explicit_database_comes_first(monkeypatch):
    shipped, explicit = record(which=3), record(which=5)
    monkeypatch.setattr(tuned, "shipped", lambda arch: Database((shipped,)))
    assert tuned.choices(PROBLEM, "sm_89")[0].config == shipped.config
    with Database((explicit,)).active():
        assert tuned.choices(PROBLEM, "sm_89")[0].config == explicit.config
    with Database().active():
        assert tuned.choices(PROBLEM, "sm_89")[0].config == shipped.config
    # The exact shape in the shipped one is better than a neighbour in the explicit one
    with Database((record(N=4080),)).active():
        assert tuned.choices(PROBLEM, "sm_89")[0].config == shipped.config


def test_other_architectures_and_float32_get_nothing():
    with Database((record(),)).active():
        assert tuned.choices(PROBLEM, "sm_86") == ()
        assert tuned.choices(MatmulProblem(4096, 4096, x_dtype="float32"), "sm_89") == ()
        target = resolve_target("llvm").target
        assert kernels_for(MatmulProblem(48, 64, x_dtype="float32", out_dtype="float32"), target)


def test_the_best_variant_serves():
    plain, gated = record(which=3), record(which=4, epilogue="silu_mul")
    half = record(which=5, x_dtype="float16")
    with Database((plain, gated, half)).active():

        def config(**more):
            return tuned.choices(MatmulProblem(4096, 4096, **more), "sm_89")[0].config

        assert config(activation="silu_mul") == gated.config
        assert config() == config(bias=True) == plain.config
        assert config(x_dtype="float16", out_dtype="float16") == half.config


def test_neighbours_are_scaled_by_waves():
    """Of two configurations of a shape nearby, the one whose waves fit the other shape wins."""
    space = space_of("gemm_mma")
    arch, M = ARCHS["sm_89"], MRange(17, 64)
    near = [(3072, 4096), (5120, 4096)]
    records = [record(N, K, M, "gemm_mma", which=which) for (N, K), which in zip(near, (0, 60), strict=True)]
    expected = min(records, key=lambda r: space.time(r.config, 4096, 4096, 64, arch))
    with Database(tuple(records)).active():
        (choice,) = tuned.choices(PROBLEM, "sm_89")
        assert choice.config == expected.config and choice.M == M
    # A neighbour that was measured slower than its model says is slower here as well
    slow = [r if r is not expected else record(r.N, r.K, M, "gemm_mma", time=1e6) for r in records]
    with Database(tuple(slow)).active():
        assert tuned.choices(PROBLEM, "sm_89")[0].record.time_us < 1e6


def test_neighbours_ranges_are_cut_and_joined():
    left = [record(3072, M=MRange(1, 8)), record(3072, M=MRange(9, 16))]
    right = [record(5120, M=MRange(1, 4)), record(5120, M=MRange(20, 99), family="gemm_mma")]
    with Database((*left, *right)).active():
        found = tuned.choices(PROBLEM, "sm_89")
    covered = [M for M in range(1, 120) if any(M in choice.M for choice in found)]
    assert covered == [*range(1, 17), *range(20, 100)]
    for a, b in pairwise(found):
        assert a.M.high < b.M.low
        assert a.M.high + 1 < b.M.low or (a.family, a.config) != (b.family, b.config)


def test_far_shapes_say_nothing():
    with Database((record(1024, 1024),)).active():
        assert tuned.choices(PROBLEM, "sm_89") == ()
        assert len(tuned.choices(MatmulProblem(2048, 2048), "sm_89")) == 1


def test_predicted_records_speak_for_their_own_shape_only():
    for source, count in (("measured", 1), ("predicted", 0)):
        with Database((record(2048, 2048, source=source, device="Some card"),)).active():
            assert len(tuned.choices(MatmulProblem(2048, 2048), "sm_89")) == 1
            assert len(tuned.choices(MatmulProblem(2048, 4096), "sm_89")) == count


def test_a_neighbours_configuration_is_checked_for_the_shape():
    one = record(4096, 4096, which=0, M=MRange(1, 8))
    assert one.config.KS > 8  # more warps than the small weight has 128-blocks
    with Database((one,)).active():
        assert tuned.choices(MatmulProblem(4096, 1024), "sm_89") == ()


def test_a_damaged_shipped_database_is_a_warning(monkeypatch, tmp_path, caplog):
    monkeypatch.undo()
    (tmp_path / "sm_89.jsonl").write_text('{"title": "nvfp4_tvm tuning records", "format_version": 9}\n')
    monkeypatch.setattr(tuned, "SHIPPED", tmp_path)
    tuned.shipped.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert tuned.shipped("sm_89") == Database() == tuned.shipped("sm_80")
        (warning,) = caplog.messages
        assert "format_version is 9" in warning and "families' own models" in warning
    finally:
        tuned.shipped.cache_clear()


def test_provenance():
    other = record(64, 4096, source="predicted", device="Some card")
    problems = [PROBLEM, MatmulProblem(64, 4096), MatmulProblem(16, 16)]
    with Database((record(), other)).active():
        assert tuned.provenance(problems, "sm_89") == (
            "records measured on Some GPU",
            "records predicted for Some card",
            "the families' own models",
        )


def test_databases_have_a_digest():
    before = tuned.digest("sm_89")
    with Database((record(),)).active():
        assert tuned.digest("sm_89") != before
    assert tuned.digest("sm_89") == before
