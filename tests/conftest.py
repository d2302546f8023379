"""Makes the modules of tests/helpers importable from every test, with importlib mode too.

Not tests/ itself: on the path, its folder nvfp4_tvm would hide the package of that name.
"""

import sys
from pathlib import Path

HELPERS = str(Path(__file__).parent / "helpers")
if HELPERS not in sys.path:
    sys.path.insert(0, HELPERS)
