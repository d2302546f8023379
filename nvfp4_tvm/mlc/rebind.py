"""Putting a function in place of one of MLC-LLM's."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


def rebind(module: ModuleType, name: str, new: Callable[..., Any]) -> None:
    """Set a function of a module, and wherever MLC-LLM has imported it from there by its name."""
    old = getattr(module, name)
    for other in list(sys.modules.values()):
        if getattr(other, "__name__", "").startswith("mlc_llm.") and vars(other).get(name) is old:
            setattr(other, name, new)
