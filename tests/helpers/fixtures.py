"""Where the genuine checkpoints lie that are kept outside the repository."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def fixture_folder(name):
    """Return the folder of a genuine checkpoint, or skip the test with what is missing.

    ``NVFP4_TVM_FIXTURES`` names the folder that holds them; the default is ``../shared/fixtures``.
    """
    base = Path(os.environ.get("NVFP4_TVM_FIXTURES", ROOT.parent / "shared" / "fixtures"))
    if not (base / name).is_dir():
        pytest.skip(f"no checkpoint {name} in {base}; set NVFP4_TVM_FIXTURES to the folder that holds it")
    return base / name
