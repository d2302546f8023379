import itertools
import sys
from dataclasses import replace

import benchmark_modules  # noqa: F401
from tuning_records import record

from benchmarks import ship_records
from nvfp4_tvm.arch import ARCHS
from nvfp4_tvm.schedules.base import MRange
from nvfp4_tvm.schedules.records import Database
from nvfp4_tvm.schedules.spaces import space_of


def test_summary_says_where_kernels_change():
    records = (record(M=MRange(1, 4)), record(M=MRange(5, 8)), record(M=MRange(17, 32), family="gemm_mma"))
    (row,) = ship_records.summary(Database(records))
    assert row["changes"] == [5, 9, 17] and row["records"] == 3
    assert (row["shape"], row["source"], row["device"]) == ("4096x4096", "measured", "Some GPU")


def test_the_last_database_counts_and_shapes_are_left_out(tmp_path, monkeypatch, capsys):
    first = Database((record(4096, 4096, MRange(1, 8), time=9.0), record(8192, 4096, time=5.0)))
    second = Database((record(4096, 4096, MRange(1, 4), time=7.0), record(9216, 3072, time=1.0)))
    for name, database in (("a", first), ("b", second)):
        database.write(tmp_path / f"{name}.jsonl")
    out = tmp_path / "sm_89.jsonl"
    arguments = [
        str(tmp_path / "a.jsonl"),
        str(tmp_path / "b.jsonl"),
        "--leave-out",
        "9216x3072",
        "-o",
        str(out),
    ]
    monkeypatch.setattr(sys, "argv", ["ship_records", *arguments])
    assert ship_records.main() == 0
    found = {(r.N, r.K, str(r.M)): r.time_us for r in Database.read(out).records}
    assert found == {(4096, 4096, "1..4"): 7.0, (8192, 4096, "1..8"): 5.0}
    assert "2 records of 2 shapes" in capsys.readouterr().out


def test_predicted_kernels_of_the_gemv_are_dropped():
    found = {}
    for family, source in itertools.product(("gemv", "gemm_mma"), ("predicted", "measured")):
        config = next(iter(space_of(family).candidates(4096, 4096, MRange(17, 32), ARCHS["sm_80"])))
        one = replace(record(M=MRange(17, 32), arch="sm_80", source=source), family=family, config=config)
        found[family, source] = len(ship_records.joined([Database((one,))]).records)
    assert found.pop(("gemv", "predicted")) == 0
    assert set(found.values()) == {1}
