import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from nvfp4_tvm.cli import output


@given(st.text())
def test_one_line_is_one_printable_line(text):
    line = output.one_line(text)
    assert line.isprintable() and len(line.splitlines()) <= 1


def test_one_line_keeps_what_is_fine():
    assert output.one_line("Grüße\n  é") == "Grüße é"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (5e9, "5.0 GB"),
    ],
)
def test_human_bytes(count, text):
    assert output.human_bytes(int(count)) == text


def test_human_bytes_has_an_end():
    assert output.human_bytes(12 * 10**15) == "12000.0 TB"


def test_print_json_is_ascii_and_takes_paths(capsys):
    output.print_json({"path": Path("a/b"), "text": "ü\x1b"})
    text = capsys.readouterr().out
    assert text.isascii() and "\x1b" not in text
    assert json.loads(text) == {"path": str(Path("a/b")), "text": "ü\x1b"}


@pytest.mark.parametrize(
    ("terminal", "quiet", "shown"), [(True, False, True), (True, True, False), (False, False, False)]
)
def test_bars_are_for_terminals(monkeypatch, capsys, terminal, quiet, shown):
    stream = io.StringIO()
    monkeypatch.setattr(output, "stderr", Console(file=stream, force_terminal=terminal, width=100))
    with output.progress(quiet) as report:
        for done in range(4):
            report("pack", done, 3)
        report("build", 0, 2)
        report("build", 2, 2)
    text = stream.getvalue()
    assert ("pack" in text and "build" in text and "100%" in text) if shown else text == ""
    assert capsys.readouterr().out == ""


def test_results_are_not_cut_off_a_terminal(capsys):
    output.stdout_console().print("x" * 500)
    assert capsys.readouterr().out == "x" * 500 + "\n"


def test_folder_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "b").write_bytes(b"12")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "c").write_bytes(b"1")
    assert output.folder_bytes(tmp_path) == 7
