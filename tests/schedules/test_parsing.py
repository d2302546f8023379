import inspect

import pytest
import tvm
from tvm.script import tirx as T
from tvm.script.parser.core.parser import ScriptMacro

from nvfp4_tvm.schedules import parsing


@T.inline
def _fill(a, value):
    for i in T.serial(4):
        a[i] = value


def _function():
    @T.prim_func(s_tir=True)
    def function(a: T.Buffer((4,), "int32")):
        _fill(a, 7)

    return function


def test_macros_expand_as_with_the_frames_of_inspect(monkeypatch):
    ours = _function()

    def find(_macro):
        for info in inspect.getouterframes(inspect.currentframe()):
            parser = info.frame.f_globals.get(ScriptMacro.parser_object_name)
            if parser is not None:
                return parser
        raise AssertionError

    monkeypatch.setattr(ScriptMacro, "_find_parser_def", find)
    tvm.ir.assert_structural_equal(ours, _function())


def test_parsers_use_it():
    assert ScriptMacro._find_parser_def is parsing.find_parser


def test_a_macro_outside_of_a_script_is_refused():
    with pytest.raises(RuntimeError, match="outside of a script"):
        parsing.find_parser(None)
