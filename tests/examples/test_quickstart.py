import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_quickstart_agrees(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "quickstart.py", "--folder", tmp_path / "out"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "greedy tokens that agree: 32 of 32" in done.stdout and "AGREES" in done.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"plain", "nvfp4", "compiled"}
