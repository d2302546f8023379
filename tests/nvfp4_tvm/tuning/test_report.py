import pytest

from nvfp4_tvm.schedules.base import MatmulProblem, MRange
from nvfp4_tvm.schedules.gemm_mma_choice import CANDIDATES
from nvfp4_tvm.tuning.driver import Tuned
from nvfp4_tvm.tuning.report import crossovers, gain, gains, markdown, plot
from nvfp4_tvm.tuning.runner import Device
from nvfp4_tvm.tuning.search import Finding
from nvfp4_tvm.tuning.trial import Candidate, Outcome

DEVICE = Device("Some GPU", "sm_90", "measured", 1e12)
KERNELS = [Candidate("gemm_mma", candidate.config) for candidate in CANDIDATES[:2]]


def finding(M, time, default):
    outcome = None if default is None else Outcome(default, 2.0)
    return Finding(M, KERNELS[0], M.high or 4096, Outcome(time, 2.0), KERNELS[1], outcome, 64)


ONE = Tuned(
    MatmulProblem(64, 128, bias=True), (finding(MRange(17, 40), 4.0, 8.0), finding(MRange(41), 8.0, None))
)


def test_figures():
    assert [gain(f) for f in ONE.findings] == [2.0, None] and gains([ONE]) == pytest.approx(2.0)
    assert crossovers(ONE) == [41] and gains([]) is None


def test_markdown():
    text = markdown([ONE], DEVICE)
    assert "Measured on a Some GPU" in text and "defaults: 2.000" in text and "from M = 41." in text
    assert f"| 17..40 | {KERNELS[0]} | 40 | 4.00 | 2.00 | 2.00 | 8.00 | 2.000 | 64 |" in text
    assert "## 64x128, bfloat16, bias" in text and "| 8.00 | 2.00 | 4.00 |  |  | 64 |" in text
    predicted = markdown([ONE], Device("Some card", "sm_90", "predicted", 1e12))
    assert "Predicted for a Some card" in predicted and "Measured" not in predicted


def test_plot(tmp_path):
    plot([ONE, ONE, ONE, ONE], DEVICE, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[1:4] == b"PNG"


def test_records():
    first, last = ONE.records("sm_90", "measured", "Some GPU")
    assert (first.M, first.judged_at, first.time_us, first.floor_us) == (MRange(17, 40), 40, 4.0, 2.0)
    assert first.epilogue == "bias" and last.M.high is None and first.trials == 64
