"""The documentation names things that exist."""

import os
import re
from pathlib import Path

import pytest
import typer.main

from nvfp4_tvm.cli.main import app

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = typer.main.get_command(app).commands


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    text = document.read_text()
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        assert (document.parent / path).exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
            assert anchor in {heading.lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_named_files_exist(document):
    paths = re.findall(
        r"(?<![\w/.-])((?:nvfp4_tvm|passes|schedules|tests|docs|benchmarks|examples)/[\w./]*)",
        document.read_text(),
    )
    for path in paths:
        path = path.rstrip(".")
        if path not in (
            "passes/x.py",
            "tests/passes/test_x.py",
            "nvfp4_tvm/x.py",
            "tests/nvfp4_tvm/test_x.py",
        ):
            assert (ROOT / path).exists(), path


@pytest.mark.parametrize("command", COMMANDS)
def test_options_are_documented(command):
    text = (ROOT / "docs" / "cli.md").read_text()
    (section,) = [part for part in text.split("\n## ") if part.startswith(f"`{command} ")]
    common = text.split("\n## ")[0]
    commands = getattr(COMMANDS[command], "commands", {command: COMMANDS[command]}).values()
    params = [param for each in commands for param in each.params]
    options = {name for param in params for name in param.opts if name.startswith("-")}
    documented = set(re.findall(r"`(--?[a-z][\w-]*)", section))
    assert options <= documented | set(re.findall(r"`(--?[a-z][\w-]*)", common))
    assert {name for name in documented if name.startswith("--") and name != "--target"} <= options


def test_the_two_commands_exist():
    text = (ROOT / "README.md").read_text()
    commands = re.findall(r"^(\./\S+)", text, re.MULTILINE)
    assert commands == ["./examples/quickstart.sh", "./tests/run.sh"]
    for command in (*commands, ".ci/run"):
        assert os.access(ROOT / command, os.X_OK)
    assert "/tests/run.sh" in (ROOT / ".ci" / "run").read_text()
