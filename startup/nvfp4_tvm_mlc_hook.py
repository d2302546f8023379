"""Activates ``nvfp4_tvm.mlc`` when ``mlc_llm`` is imported; installed beside the package, run at start-up.

``nvfp4_tvm_mlc.pth`` imports this file whenever Python starts, so it imports nothing that Python has not loaded
by then. ``NVFP4_TVM_MLC=0`` switches it off.
"""

import os
import sys


class Finder:
    """Finds no module: sees that ``mlc_llm`` is about to be imported, and steps aside."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        """Activate the plug-in if `name` is mlc_llm; always return None, so that others find it."""
        if name == "mlc_llm":
            sys.meta_path.remove(cls)
            try:
                import nvfp4_tvm.mlc  # noqa: F401
            except Exception as error:  # a broken plug-in must not break mlc_llm for those who do not use it
                print(
                    f"nvfp4_tvm: the plug-in for MLC-LLM is not active: {error} "
                    "(NVFP4_TVM_MLC=0 switches the plug-in off)",
                    file=sys.stderr,
                )
        return None


if os.environ.get("NVFP4_TVM_MLC", "1") != "0":
    sys.meta_path.insert(0, Finder)
