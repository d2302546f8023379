"""A function is replaced wherever MLC-LLM holds it."""

import sys
from types import ModuleType

from nvfp4_tvm.mlc.rebind import rebind


def module(monkeypatch, name, **names):
    new = ModuleType(name)
    vars(new).update(names)
    monkeypatch.setitem(sys.modules, name, new)
    return new


def test_also_where_it_was_imported_by_name(monkeypatch):
    def old(): ...

    def other(): ...

    def new(): ...

    own = module(monkeypatch, "mlc_llm.interface.x", run=old)
    command = module(monkeypatch, "mlc_llm.cli.x", run=old)
    different = module(monkeypatch, "mlc_llm.cli.y", run=other)
    foreign = module(monkeypatch, "somebody.else", run=old)
    rebind(own, "run", new)
    assert own.run is command.run is new
    assert different.run is other and foreign.run is old
