import json
import sys

import benchmark_modules  # noqa: F401
from simulated_runner import SimulatedRunner

from benchmarks import sweep
from nvfp4_tvm.arch import ARCHS
from nvfp4_tvm.schedules.base import MatmulProblem


def test_rows_and_table():
    rows = sweep.sweep(MatmulProblem(64, 512), [1, 48], 12, SimulatedRunner(ARCHS["sm_89"]), None)
    assert {(row["M"], row["family"]) for row in rows} == {(1, "gemv"), (48, "gemm_mma")}
    assert [row["rank"] for row in rows if row["M"] == 1] == list(range(sum(row["M"] == 1 for row in rows)))
    wrong = [row for row in rows if row["measured_us"] is None]
    assert all(row["error"].startswith("wrong") for row in wrong)
    text = sweep.table(rows)
    best = min((r for r in rows if r["M"] == 48 and not r["error"]), key=lambda r: r["measured_us"])
    assert f"| 48, gemm_mma | {best['kernel']} | {best['measured_us']:.2f} |" in text


def test_the_command(monkeypatch, tmp_path, capsys):
    output = tmp_path / "sweep.json"
    arguments = [
        "64x512",
        "--rows",
        "1,48",
        "--candidates",
        "3",
        "--device",
        "model:sm_86",
        "-o",
        str(output),
    ]
    monkeypatch.setattr(sys, "argv", ["sweep", *arguments])
    assert sweep.main() == 0 and "| 1, gemv |" in capsys.readouterr().out
    report = json.loads(output.read_text())
    assert report["source"] == "predicted" and len(report["rows"]) == 6
    assert output.with_suffix(".png").read_bytes()[1:4] == b"PNG"
