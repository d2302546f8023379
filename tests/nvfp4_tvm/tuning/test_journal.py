import json

import pytest

from nvfp4_tvm.errors import DatabaseError
from nvfp4_tvm.schedules.base import MatmulProblem
from nvfp4_tvm.schedules.gemm_mma_choice import CANDIDATES
from nvfp4_tvm.tuning.journal import Journal
from nvfp4_tvm.tuning.trial import Candidate, Outcome, Trial

RUN = {"device": "Some GPU", "seed": 0}
PROBLEM = MatmulProblem(64, 128, x_dtype="float16", out_dtype="float32", bias=True, activation="silu_mul")
TRIALS = [Trial(PROBLEM, Candidate("gemm_mma", c.config), 17 + i) for i, c in enumerate(CANDIDATES[:3])]
OUTCOMES = dict(zip(TRIALS, [Outcome(1.5, 1.0), Outcome(None, 1.0, "wrong"), Outcome(2.0, 1.0)], strict=True))


@pytest.fixture
def path(tmp_path):
    with Journal(tmp_path / "a.log", RUN) as journal:
        for trial, outcome in OUTCOMES.items():
            journal.add({trial: outcome})
    return tmp_path / "a.log"


def test_what_is_added_is_there_again(path):
    with Journal(path, RUN) as journal:
        assert journal.outcomes == OUTCOMES


def test_an_unfinished_line_is_cut_off(path):
    whole = path.read_bytes()
    lines = [at for at, byte in enumerate(whole) if byte == ord("\n")]
    ends = {at + by for at in lines for by in (-1, 0, 1, 2)} | set(range(lines[0] + 1, len(whole), 17))
    for end in sorted(end for end in ends if lines[0] < end < len(whole)):
        path.write_bytes(whole[:end])
        with Journal(path, RUN) as journal:
            kept = dict(list(OUTCOMES.items())[: whole[:end].count(b"\n") - 1])
            assert journal.outcomes == kept
            journal.add({trial: OUTCOMES[trial] for trial in TRIALS if trial not in kept})
        assert path.read_bytes() == whole


def test_an_unfinished_first_line_is_a_new_journal(path):
    path.write_bytes(path.read_bytes()[:10])
    with Journal(path, RUN) as journal:
        assert not journal.outcomes
    with Journal(path, RUN) as journal:
        assert not journal.outcomes


def test_another_run_is_refused(path):
    with pytest.raises(DatabaseError, match="device is 'Some GPU', now 'Another'"):
        Journal(path, {**RUN, "device": "Another"})


def test_the_same_run_in_other_words_is_continued(path):
    """Found by atheris: lines that differ as text and not in what they say."""
    first, *lines = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps(json.loads(first), separators=(",", ":  ")), *lines]) + "\n")
    with Journal(path, RUN) as journal:
        assert len(journal.outcomes) == len(lines)


def test_a_run_with_more_or_fewer_settings_is_another(path):
    with pytest.raises(DatabaseError, match="journal of another run: near is missing, now None"):
        Journal(path, {**RUN, "near": None})


@pytest.mark.parametrize("text", ["something else\n", "[]\n", json.dumps({"title": "a novel"}) + "\n"])
def test_other_files_are_refused(path, text):
    path.write_text(text)
    with pytest.raises(DatabaseError, match="no tuning journal"):
        Journal(path, RUN)
    assert path.read_text() == text


@pytest.mark.parametrize(
    "line", ["{", "[]", "{}", '{"N": 1}', "null", '{"N": 64, "K": 128, "x_dtype": "f8"}']
)
def test_a_damaged_line_is_refused(path, line):
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(DatabaseError, match=r"line 5: .*damaged"):
        Journal(path, RUN)


@pytest.mark.parametrize(
    "change",
    [{"time_us": "x"}, {"error": 1, "time_us": None}, {"error": "both"}, {"floor_us": None}, {"family": "x"}],
)
def test_a_line_with_a_wrong_field_is_refused(path, change):
    *lines, last = path.read_text().splitlines()
    path.write_text("\n".join([*lines, json.dumps(json.loads(last) | change)]) + "\n")
    with pytest.raises(DatabaseError, match="line 4: "):
        Journal(path, RUN)
