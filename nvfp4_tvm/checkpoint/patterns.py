"""Which modules a quantization config names: exact names, wildcards, ``re:`` patterns and class names.

Patterns come from a file, so matching must end: `Patterns` refuses what could backtrack without bound, and
gives up on what is merely very slow.
"""

from __future__ import annotations

import fnmatch
import re
import time
import warnings
from typing import Any, Literal

from nvfp4_tvm.errors import CheckpointError

MAX_NAMES = 100_000
MAX_PATTERNS = 512
MAX_LENGTH = 512
MAX_MODULE_NAME = 256
# Open-ended repeats, none inside another: a match takes at most 256**4 / 24 steps, seconds for the worst
# case.
_MAX_REPEATS = 4
_MAX_SECONDS = 5.0

Role = Literal["linear", "embedding", "router"]


def role_of(module: str) -> Role:
    """Return what a module with a 2-D weight is, judged by the last part of its name.

    A checkpoint does not hold classes. Embeddings are called so in every decoder this package builds; a
    mixture's router is an ``nn.Linear`` in some models and a bare parameter in others.
    """
    last = module.rpartition(".")[2].lower()
    if "embed" in last or last in ("wte", "wpe"):
        return "embedding"
    return "router" if last in ("gate", "router") else "linear"


class Patterns:
    """An ignore, exclude or targets list.

    Parameters
    ----------
    entries : object
        A list of strings, or None for the empty list: exact module names; ``re:`` and a regular expression
        matched from the start of the name (compressed-tensors).
    where : str
        The file and key, for errors.
    wildcards : bool
        ModelOpt's rules: shell wildcards, and what covers a module covers everything inside it.

    Raises
    ------
    CheckpointError
        If it is no list of strings, too long, or holds a pattern that may not end.
    """

    def __init__(self, entries: Any, where: str, *, wildcards: bool = False):
        if entries is None:
            entries = []
        if not isinstance(entries, list):
            raise CheckpointError(f"{where}: found {type(entries).__name__}, expected a list of module names")
        self.where, self._inside = where, wildcards
        self._names: set[str] = set()
        self._regexes: list[re.Pattern[str]] = []
        self._seconds = 0.0
        for text in entries:
            if not isinstance(text, str) or not text or len(text) > MAX_LENGTH:
                raise CheckpointError(
                    f"{where}: found {text!r:.80}, expected a module name or pattern of at most "
                    f"{MAX_LENGTH} characters"
                )
            if text.startswith("re:"):
                self._regexes.append(self._compile(text[3:]))
            elif wildcards and set(text) & set("*?["):
                # fnmatch's translation does not backtrack across its stars
                self._regexes.append(re.compile(fnmatch.translate(text)))
            else:
                self._names.add(text)
        for found, most, what in (
            (len(self._names), MAX_NAMES, "names"),
            (len(self._regexes), MAX_PATTERNS, "patterns"),
        ):
            if found > most:
                raise CheckpointError(f"{where}: found {found} {what}, expected at most {most}")

    def _compile(self, expression: str) -> re.Pattern[str]:
        plain = re.sub(r"\\.|\[\^?\]?(?:\\.|[^]\\])*\]", "x", expression)  # without escapes and classes
        repeats = len(re.findall(r"[*+]|\{\d*,?\d*\}", plain))
        repeated_group = re.search(r"\)[*+{]", plain)
        # back references, conditions, and the flag that hides spaces between a group and its repeat
        refused = re.search(r"\\\d|\(\?P=|\(\?\(|\(\?[aiLmsu]*x", expression)
        if repeated_group or refused or repeats > _MAX_REPEATS:
            raise CheckpointError(
                f"{self.where}: found the pattern {expression!r:.120}, which may backtrack without end: "
                f"expected at most {_MAX_REPEATS} repeats, no repeated groups, no back references; list "
                "the names instead"
            )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of syntax that may mean something else one day
                return re.compile(expression)
        except (re.error, OverflowError, RecursionError) as e:
            raise CheckpointError(
                f"{self.where}: found the pattern {expression!r:.120}, expected a regular expression "
                f"({str(e)!r:.120})"  # which quotes line breaks of the pattern
            ) from None

    def matches(self, module: str) -> bool:
        """Return whether an entry names `module`.

        Raises
        ------
        CheckpointError
            If the patterns have taken unreasonably long.
        """
        if module in self._names:
            return True
        if self._inside:
            parent = module.rpartition(".")[0]
            if parent and self.matches(parent):
                return True
        if not self._regexes:
            return False
        if len(module) > MAX_MODULE_NAME:
            raise CheckpointError(
                f"{self.where}: found a module name of {len(module)} characters to match with a pattern, "
                f"expected at most {MAX_MODULE_NAME}"
            )
        # ModelOpt writes "x.*" where x itself is excluded too.
        names = (module, module + ".") if self._inside else (module,)
        start = time.perf_counter()
        found = any(r.match(name) for r in self._regexes for name in names)
        self._seconds += time.perf_counter() - start
        if self._seconds > _MAX_SECONDS:
            raise CheckpointError(
                f"{self.where}: matching took over {_MAX_SECONDS:g} s, expected simple patterns: list the "
                "names instead"
            )
        return found
