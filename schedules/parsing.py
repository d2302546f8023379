"""Parsing TVMScript in half the time, which is most of what building a kernel takes before its compiler runs.

Every ``T.inline`` and macro call of a script looks for the parser among the frames of the stack. TVM does so with
``inspect.getouterframes``, which opens and searches the source file of each frame to quote a line of it that
nobody reads: half of the time of parsing a wgmma kernel (1.0 s against 0.5 s). `find_parser` walks the same frames
without.
"""

from __future__ import annotations

import inspect

from tvm.script.parser.core.parser import Parser, ScriptMacro


def find_parser(_macro: ScriptMacro) -> Parser:
    """Return the parser of the innermost frame that has one, as ``ScriptMacro._find_parser_def`` does.

    Raises
    ------
    RuntimeError
        If a macro is called outside of a script.
    """
    frame = inspect.currentframe()
    while frame is not None:
        parser = frame.f_globals.get(ScriptMacro.parser_object_name)
        if parser is not None:
            return parser
        frame = frame.f_back
    raise RuntimeError(
        f"{ScriptMacro.parser_object_name} not available: a macro was called outside of a script"
    )


def parse_fast() -> None:
    """Make TVM's parser use `find_parser`. What it parses does not change."""
    if hasattr(ScriptMacro, "_find_parser_def"):
        ScriptMacro._find_parser_def = find_parser
