import benchmark_modules  # noqa: F401
import pytest

from benchmarks import emulate
from nvfp4_tvm.schedules.tuned import shipped

ALL = list(emulate.subjects(["sm_89", "sm_90"]))


def test_every_shipped_configuration_is_there_once():
    found = [(one.arch, one.family, one.config) for one in ALL]
    expected = {(arch, r.family, r.config) for arch in ("sm_89", "sm_90") for r in shipped(arch).records}
    assert len(found) == len(set(found)) and set(found) == expected


@pytest.mark.parametrize("family", sorted({one.family for one in ALL}))
def test_problems_have_ends_and_more_k_than_stages(family):
    for one in (one for one in ALL if one.family == family):
        problem, (first, second) = one.problem(), one.rows()
        assert problem.N % 16 and problem.K % 128 and first <= second and first in problem.M
        stages = max(vars(one.config).get(name, 1) for name in ("D", "stages", "x_stages", "w_stages"))
        assert problem.K > 128 * stages


def test_a_configuration_is_run():
    one = next(one for one in ALL if one.family == "gemm_cluster" and one.config.cluster == 2)
    row = emulate.run(one)
    assert row["wrong"] is None and row["family"] == "gemm_cluster" and row["config"] == vars(one.config)


def test_what_is_wrong_is_told(monkeypatch):
    one = next(one for one in ALL if one.family == "gemv")
    outputs = iter(range(100))

    def function(operands, out, **way):
        return out * 0 + next(outputs)

    monkeypatch.setattr(emulate, "kernel_on_host", lambda *_: function)
    monkeypatch.setattr(emulate.Case, "empty", lambda case, problem: case.expected * 0)
    assert "other bits than {'late': True, 'order': 0} with {'late': False" in emulate.run(one)["wrong"]
    monkeypatch.setattr(emulate, "every_way", lambda run, operands, out: out)
    assert emulate.run(one)["wrong"].startswith("AssertionError: (np.float64(1.0)")
