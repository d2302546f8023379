import json

import pytest
from tuning_records import record

from nvfp4_tvm.schedules.base import MRange
from nvfp4_tvm.schedules.records import Database


@pytest.fixture
def tune(cli, tmp_path):
    def run(*more):
        return cli(
            "tune", "--shapes", "64x256", "--device", "model:sm_89", "--trials", "4",
            "-o", tmp_path / "db.jsonl", *more,
        )  # fmt: skip

    return run


def test_a_database_a_report_and_a_plot(tune, tmp_path):
    done = tune()
    assert done.code == 0 and done.err == "" and done.out.count("\n") == 1
    assert done.out.startswith("tuned 1 of 1 weights, predicted, GeForce RTX 4090")
    database = Database.read(tmp_path / "db.jsonl")
    assert database.records
    assert all(r.source == "predicted" and (r.N, r.K) == (64, 256) for r in database.records)
    report = (tmp_path / "db.md").read_text()
    assert "Predicted for a GeForce RTX 4090" in report and "## 64x256, bfloat16" in report
    assert (tmp_path / "db.png").read_bytes()[1:4] == b"PNG"
    # the same command has nothing left to do, and another one adds to the database
    before = (tmp_path / "db.jsonl").read_text()
    assert tune().code == 0 and (tmp_path / "db.jsonl").read_text() == before


def test_json_and_options(tune, tmp_path):
    done = tune(
        "--json", "--m-ranges", "1-8,9-16", "--dtype", "float16", "--epilogue", "bias", "--families", "gemv"
    )
    report = json.loads(done.out)
    assert report["source"] == "predicted" and report["done"] and report["gain"] >= 1
    (weight,) = report["weights"]
    assert weight["weight"] == "64x256, float16, bias" and weight["crossovers"] == [9]
    assert [(r["low"], r["high"], r["family"]) for r in weight["records"]] == [
        (1, 8, "gemv"),
        (9, 16, "gemv"),
    ]
    assert [r.to_json() for r in Database.read(tmp_path / "db.jsonl").records] == weight["records"]


def test_a_checkpoint(cli, nvfp4_folder, tmp_path):
    done = cli(
        "tune", nvfp4_folder, "--device", "model:sm_86", "--trials", "1", "-o", tmp_path / "db.jsonl", "--json"
    )  # fmt: skip
    shapes = {weight["weight"].split(",")[0] for weight in json.loads(done.out)["weights"]}
    assert shapes == {"128x64", "64x64"}  # qkv and gate_up are fused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "a checkpoint or --shapes"),
        (["a", "--shapes", "64x256"], "a checkpoint or --shapes"),
        (["--shapes", "64"], "expected NxK"),
        (["--shapes", "64x17"], "64x17"),
        (["--shapes", "64x256", "--m-ranges", "9-16,1-8"], "in order"),
        (["--shapes", "64x256", "--m-ranges", "a"], "range of M"),
        (["--shapes", "64x256", "--dtype", "float32"], "expected bfloat16 or float16"),
        (["--shapes", "64x256", "--epilogue", "gelu"], "epilogue 'gelu'"),
        (["--shapes", "64x256", "--families", "x"], "kernel family 'x'"),
        (["--shapes", "64x256", "--device", "tpu"], "device 'tpu'"),
    ],
)
def test_errors(cli, tmp_path, arguments, message):
    done = cli("tune", *arguments, "-o", tmp_path / "db.jsonl")
    assert done.code == 2 and done.out == "" and message in done.err and done.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_foreign_file_is_not_replaced(tune, tmp_path):
    (tmp_path / "db.jsonl").write_text("years of work\n")
    done = tune()
    assert (
        done.code == 2 and "damaged" in done.err and (tmp_path / "db.jsonl").read_text() == "years of work\n"
    )


def test_inspect_lists_a_database(cli, tmp_path):
    records = (record(), record(M=MRange(9, 16), source="predicted", device="Some card"))
    Database(records).write(tmp_path / "db.jsonl")
    out = cli("inspect", tmp_path / "db.jsonl").out
    assert "measured: Some GPU, 2026-01-02" in out and "predicted: Some card, 2026-01-02" in out
    report = json.loads(cli("inspect", tmp_path / "db.jsonl", "--json").out)
    assert report["kind"] == "database" and report["records"] == [r.to_json() for r in records]


@pytest.mark.parametrize(
    ("target", "text", "message"),
    [
        ("cuda:sm_89", "years of work\n", "damaged"),
        ("cuda:sm_90", None, "no records for sm_90"),
        ("llvm", None, "records of CUDA kernels"),
    ],
)
def test_compile_refuses_a_database_it_cannot_use(cli, nvfp4_folder, tmp_path, target, text, message):
    Database((record(),)).write(tmp_path / "db.jsonl")
    if text is not None:
        (tmp_path / "db.jsonl").write_text(text)
    done = cli(
        "compile", nvfp4_folder, "-o", tmp_path / "out", "--target", target, "--tuning-db", tmp_path / "db.jsonl"
    )  # fmt: skip
    assert done.code == 2 and message in done.err and not (tmp_path / "out").exists()
