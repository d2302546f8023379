"""What differs between the TVM that MLC-LLM brings (main of mid-2026) and the pinned one.

Every other name of TVM that the plug-in (this folder) uses is in both (tests/nvfp4_tvm/mlc/test_compat.py). The
kernels and passes behind it need the pinned one.
"""

from __future__ import annotations

from typing import Any

from tvm import relax, tirx
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn.core import wrap_nested


def tensor(expr: relax.Expr, name: str) -> nn.Tensor:
    """Emit an expression into the current block and return it as a tensor of the module frontend."""
    return wrap_nested(expr, name)


def var_name(var: tirx.Var) -> str:
    """Return the name of a symbolic extent; it was ``name_hint`` until TVM 0.27."""
    return str(getattr(var, "name", None) or var.name_hint)


def constant(extent: Any) -> int | None:
    """Return an extent as a number, None if it is symbolic."""
    if isinstance(extent, tirx.IntImm):
        return int(extent)
    return extent if isinstance(extent, int) else None
