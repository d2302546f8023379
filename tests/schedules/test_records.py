import dataclasses
import json
import stat
import time

import pytest
from tuning_records import record

from nvfp4_tvm.errors import DatabaseError
from nvfp4_tvm.schedules import records
from nvfp4_tvm.schedules.base import MatmulProblem, MRange
from nvfp4_tvm.schedules.records import Database, active_database, epilogue_kind, header
from nvfp4_tvm.tuning.trial import problem_of

RECORDS = (record(), record(M=MRange(9, 16)), record(M=MRange(17), family="gemm_mma"))


@pytest.fixture
def path(tmp_path):
    Database(RECORDS).write(tmp_path / "db.jsonl")
    return tmp_path / "db.jsonl"


def rewritten(path, number, **change):
    """Change fields of one line; None removes one."""
    lines = path.read_text().splitlines()
    raw = json.loads(lines[number]) | change
    lines[number] = json.dumps({key: value for key, value in raw.items() if value != "gone"})
    path.write_text("\n".join(lines) + "\n")


def test_what_is_written_is_read(path):
    database = Database.read(path)
    assert database.records == RECORDS and database.path == path
    assert database.digest == Database(RECORDS).digest != Database(RECORDS[:2]).digest
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize(
    ("problem", "kind"),
    [
        (MatmulProblem(32, 48), "plain"),
        (MatmulProblem(32, 48, bias=True, residual=True), "bias+residual"),
        (MatmulProblem(32, 48, activation="silu_mul", out_dtype="float32"), "silu_mul+float32"),
        (MatmulProblem(32, 48, x_dtype="float16", out_dtype="bfloat16"), "bfloat16"),
    ],
)
def test_epilogues_have_names(problem, kind):
    assert epilogue_kind(problem) == kind
    assert problem_of(32, 48, problem.x_dtype, kind) == problem


@pytest.mark.parametrize("text", ["", "\n", "{}\n", "years of work\n", "[1]\n", '{"title": "other"}\n'])
def test_other_files_are_refused(path, text):
    path.write_text(text)
    with pytest.raises(DatabaseError, match=r"db\.jsonl"):
        Database.read(path)


def test_what_is_no_text_or_not_there_is_refused(path):
    path.write_bytes(b"\xff\xfe\x00")
    for wrong in (path, path.parent, path.parent / "absent.jsonl"):
        with pytest.raises(DatabaseError, match="cannot be read"):
            Database.read(wrong)


@pytest.mark.parametrize(
    ("name", "value"), [("format_version", 2), ("layout_version", 99), ("tvm_version", "0.28.0")]
)
def test_other_versions_are_refused(path, name, value):
    rewritten(path, 0, **{name: value})
    with pytest.raises(DatabaseError, match=f"{name} is {value!r}, expected {header()[name]!r}"):
        Database.read(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"time_us": "gone"}, "expected the fields"),
        ({"more": 1}, "expected the fields"),
        ({"N": "4096"}, "N is '4096', expected int"),
        ({"N": True}, "N is True"),
        ({"N": -1}, "-1"),
        ({"K": 17}, "17"),
        ({"low": 0}, "range of M"),
        ({"arch": "sm_75"}, "no such kernels"),
        ({"x_dtype": "float32"}, "no such kernels"),
        ({"source": "guessed"}, "expected measured or predicted"),
        ({"family": "gemm_magic"}, "gemm_magic"),
        ({"high": 99}, "is not in the space"),  # more rows than the family takes
        ({"low": 9, "high": 5}, "range of M"),
        ({"config": {}}, "configuration"),
        ({"config": {"KS": 99}}, "configuration"),
    ],
)
def test_damaged_records_are_refused(path, change, message):
    rewritten(path, 1, **change)
    with pytest.raises(DatabaseError, match=rf"line 2: .*{message}"):
        Database.read(path)


def test_a_configuration_outside_of_the_space_is_refused(path):
    """It would build, but nobody said that it may."""
    config = json.loads(path.read_text().splitlines()[1])["config"]
    rewritten(path, 1, config=config | {"resident": 7})
    with pytest.raises(DatabaseError, match="is not in the space of gemv"):
        Database.read(path)


def test_a_configuration_of_another_architecture_is_refused(path):
    """More shared memory than an SM has, as on another card."""
    config = {"block_m": 192, "block_n": 256, "warp_m": 96, "warp_n": 64, "k_warps": 1, "block_k": 256}
    rewritten(path, 3, config=config | {"stages": 4, "token_tiles": 1, "splits": 1})
    with pytest.raises(DatabaseError, match="is not in the space of gemm_mma"):
        Database.read(path)


def test_every_truncation_is_refused_or_whole_lines(path):
    whole = path.read_bytes()
    for end in range(0, len(whole), 97):
        path.write_bytes(whole[:end])
        if whole[:end].endswith(b"}") or whole[:end].endswith(b"\n"):
            continue
        with pytest.raises(DatabaseError):
            Database.read(path)


@pytest.mark.parametrize(
    "change",
    [{"N": 2**31}, {"time_us": float("nan")}, {"time_us": float("inf")}, {"low": -1}, {"trials": 10**400}],
)
def test_numbers_that_cannot_be_are_refused(path, change):
    rewritten(path, 2, **change)
    with pytest.raises(DatabaseError, match=rf"line 3: {next(iter(change))} is .*, expected 0 to"):
        Database.read(path)


def test_a_configuration_that_divides_by_zero_is_refused(path):
    """Found by atheris."""
    config = json.loads(path.read_text().splitlines()[3])["config"]
    rewritten(path, 3, config=config | {"k_warps": 0})
    with pytest.raises(DatabaseError, match=r"line 4: gemm_mma configuration: .* is refused"):
        Database.read(path)


def test_absurd_files_are_refused(path, monkeypatch):
    header_line = path.read_text().splitlines()[0]
    path.write_text(header_line + "\n" + "[" * 100_000 + "\n")
    with pytest.raises(DatabaseError, match="line 2: no JSON"):
        Database.read(path)
    monkeypatch.setattr(records, "MAX_BYTES", 100)
    with pytest.raises(DatabaseError, match="found more than 100 bytes"):
        Database.read(path)


def test_many_records_of_a_problem_are_compared_fast():
    one = record()
    many = [dataclasses.replace(one, M=MRange(2 * i + 1, 2 * i + 2)) for i in range(5_000)]
    start = time.perf_counter()
    Database(tuple(many))
    assert time.perf_counter() - start < 10


def test_ranges_of_a_problem_do_not_overlap():
    with pytest.raises(DatabaseError, match=r"two records for M 1\.\.8 and 5\.\.8"):
        Database((record(), record(M=MRange(5, 8))))
    Database((record(), record(M=MRange(5, 8), x_dtype="float16"), record(N=2048), record(arch="sm_90")))


def test_merging_replaces_whole_problems():
    newer = record(M=MRange(1, 16), which=5)
    other = record(N=64)
    database = Database((*RECORDS, other)).merged([newer])
    assert database.records == (other, newer)


def test_the_innermost_database_is_active():
    outer, inner = Database(RECORDS), Database(RECORDS[:1])
    assert active_database() is None
    with outer.active():
        with inner.active():
            assert active_database() is inner
        assert active_database() is outer
    assert active_database() is None
