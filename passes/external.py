"""The module attribute ``external_mods``: compiled modules that ``relax.build`` links in as they are."""

from __future__ import annotations

from collections.abc import Iterable

import tvm

ATTRIBUTE = "external_mods"


def attach(mod: tvm.IRModule, compiled: Iterable[tuple[str, tvm.runtime.Module]]) -> tvm.IRModule:
    """Return ``mod`` with compiled modules attached, each with the name of a function in it.

    A function that some attached module has already is not attached again.
    """
    modules = list((mod.attrs or {}).get(ATTRIBUTE) or [])
    for name, module in compiled:
        if not any(present.implements_function(name) for present in modules):
            modules.append(module)
    return mod.with_attr(ATTRIBUTE, modules) if modules else mod
