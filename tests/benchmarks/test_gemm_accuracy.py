from concurrent.futures import ThreadPoolExecutor
from itertools import permutations

import benchmark_modules  # noqa: F401
import pytest
import torch

from benchmarks import gemm_accuracy
from benchmarks.gemm_accuracy import Case, Weight, check, random_cases, shape_cases, summary
from nvfp4_tvm.schedules.base import MatmulProblem, MRange
from nvfp4_tvm.torch_packed import PackedWeight


class Kernel:
    """The exact product rounded once, with a fault if one is asked for."""

    def __init__(self, weight: Weight, problem: MatmulProblem, fault=lambda x, out: None) -> None:
        self.weight, self.problem, self.fault = weight, problem, fault

    def workspace_bytes(self, M: int) -> int:
        return 64 * M

    def __call__(self, x, packed: PackedWeight, bias, residual, out) -> None:
        assert packed is self.weight.packed
        out.copy_(gemm_accuracy.exact_result(x, self.weight, bias, residual, self.problem.activation))
        self.fault(x, out)


def result(fault=lambda x, out: None, dtype="bfloat16", M=33, **epilogue):
    problem = MatmulProblem(48, 80, MRange(M, M), dtype, dtype, **epilogue)
    weight = Weight(48, 80, 0, dtype == "float16", "cpu")
    return check(Case(problem, M, "sm_90", 0), Kernel(weight, problem, fault), weight)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("epilogue", [e for e in gemm_accuracy.EPILOGUES if "out_dtype" not in e])
def test_an_exact_kernel_passes(dtype, epilogue):
    figures = result(dtype=dtype, **epilogue)
    assert figures["failure"] is None and figures["err"] == figures["rounding"] > 1e-5


def small_row_wrong(x, out):
    size = out.float().square().mean(0)
    out[:, size.argmin()] *= 1.5


def beyond(x, out):
    torch.as_strided(out, (out.numel() + 1,), (1,), out.storage_offset())[-1] = 0


def reads_beyond(x, out):
    out += torch.as_strided(x, (x.numel() + 1,), (1,), x.storage_offset())[-1]


def flicker(x, out):
    out.view(torch.int16)[0] += torch.randint(0, 2, (out.shape[1],), dtype=torch.int16)


@pytest.mark.parametrize(
    ("fault", "failure"),
    [
        (lambda x, out: out.mul_(1.01), "err 0.01"),
        (small_row_wrong, "err_rows"),
        (lambda x, out: out[-1, -1].fill_(torch.nan), "not finite"),
        (flicker, "not reproducible"),
        (beyond, "wrote outside of the output"),
        (reads_beyond, "not finite"),
    ],
)
def test_faults_are_found(fault, failure):
    torch.manual_seed(0)
    assert failure in result(fault)["failure"]


def test_all_scales_and_outliers_are_drawn():
    weight = Weight(48, 80, 0, device="cpu")
    assert weight.rows.min() < 1e-4 and weight.rows.max() > 10 and weight.exact.abs().max() == 6 * 448
    narrow = Weight(48, 80, 0, True, "cpu").rows
    assert narrow.max() / narrow.min() <= 16 and narrow.min() >= 1e-6 and narrow.max() <= 1e3
    x = gemm_accuracy.activations(5, weight, torch.bfloat16, 0)
    assert x.abs().max() > 5e3 and x.abs().median() < 2
    x = gemm_accuracy.activations(64, Weight(48, 80, 0, True, "cpu"), torch.float16, 0)
    assert x.isfinite().all() and x.abs().max() > 1e3 * x.abs().median()


def test_random_cases():
    cases = list(random_cases(200, ["sm_90", "sm_89"]))
    assert len(cases) == 400 and cases == list(random_cases(200, ["sm_90", "sm_89"]))
    problems = [case.problem for case in cases]
    for values, wanted in (
        ({p.N for p in problems}, {8, 24, 100}),
        ({p.K for p in problems}, {16, 48, 2880}),
        ({case.M for case in cases}, {1, 3, 17, 33, 100, 777}),
        ({p.x_dtype for p in problems}, {"bfloat16", "float16"}),
        ({p.activation for p in problems}, {None, "silu_mul"}),
        ({p.bias for p in problems}, {True, False}),
        ({p.residual for p in problems}, {True, False}),
    ):
        assert wanted <= values
    assert all(case.problem.M == MRange(case.M, case.M) for case in cases)
    specials = {(p.N, p.K, c.M) for c, p in zip(cases, problems, strict=True) if p.activation is None}
    assert len([s for s in specials if s[0] in (8, 24, 100) and s[1] in (16, 48, 2880)]) > 30


def test_shape_cases_share_a_kernel():
    cases = list(shape_cases([(8, 16)], [1, 77], ["float16"], ["sm_89"]))
    assert [case.M for case in cases] == [1, 77] and len({case.problem for case in cases}) == 1


def test_summary_counts_what_failed():
    row = {"list": "random", "arch": "sm_90", "x_dtype": "bfloat16", "out_dtype": "bfloat16"}
    rows = [
        row | {"failure": None, "err": 1e-3, "err_rows": 2e-3, "rounding": 1e-3, "reproducible": True},
        row | {"failure": "err 1", "err": 1.0, "err_rows": 1.0, "rounding": 1e-3, "reproducible": True},
    ]
    (facts,) = summary(rows)
    assert (facts["cases"], facts["failures"]) == (2, 1)
    assert facts["worst_err"] == 1.0 and facts["worst_over_rounding"] == pytest.approx(1000)
    (facts,) = summary([*rows, row | {"failure": "did not build"}])
    assert facts["failures"] == 2 and facts["worst_err"] != facts["worst_err"]  # NaN: not hidden


def test_what_is_on_disk_comes_first(tmp_path, monkeypatch):
    cases = list(shape_cases([(8, 256), (24, 256)], [1], ["float16"], ["sm_89", "sm_80"]))
    there, missing = cases[3], cases[:3]
    (tmp_path / "there.so").touch()
    monkeypatch.setattr(
        gemm_accuracy,
        "library_path",
        lambda problem, arch: (
            tmp_path / ("there.so" if (problem, arch) == (there.problem, there.arch) else "no.so")
        ),
    )
    monkeypatch.setattr(gemm_accuracy, "ProcessPoolExecutor", ThreadPool)
    monkeypatch.setattr(
        gemm_accuracy, "compile_library", lambda problem, arch: "broken" if arch == "sm_80" else 0.1
    )
    found = list(gemm_accuracy.compiled(cases, 2))
    assert found[0] == ([there], None)
    assert {(group[0].arch, failure) for group, failure in found[1:]} == {
        ("sm_89", None),
        ("sm_80", "broken"),
    }
    assert [case for group, _ in found[1:] for case in group] in [
        list(order) for order in permutations(missing)
    ]
    some = gemm_accuracy.compiled(cases, 2)
    next(some), next(some)
    some.close()  # does not wait for the rest


class ThreadPool(ThreadPoolExecutor):
    """In place of processes, which would not see what a test replaces."""

    def __init__(self, jobs, context):
        super().__init__(jobs)
