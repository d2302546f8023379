"""Typed reads of a model configuration; every refusal names the key, what was found and what is expected."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from nvfp4_tvm.errors import NVFP4Error


def positive_integer(
    config: Mapping[str, Any], key: str, default: int | None = None, prefix: str = ""
) -> int:
    """Return an integer >= 1; null and a missing key take the default.

    Raises
    ------
    NVFP4Error
        If the value is missing without a default, no integer, or below 1.
    """
    value = config.get(key)
    if value is None:
        value = default
    if value is None:
        raise NVFP4Error(f"config: {prefix}{key} is missing, expected a positive integer")
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise NVFP4Error(f"config: {prefix}{key} is {value!r}, expected a positive integer")
    return value


def number(
    config: Mapping[str, Any],
    key: str,
    default: float | None = None,
    prefix: str = "",
    above: float = -math.inf,
) -> float:
    """Return a finite number greater than ``above``; null and a missing key take the default.

    Raises
    ------
    NVFP4Error
        If the value is missing without a default, no number, not finite or too small.
    """
    value = config.get(key)
    if value is None:
        value = default
    expected = "a finite number" if above == -math.inf else f"a finite number above {above:g}"
    if value is None:
        raise NVFP4Error(f"config: {prefix}{key} is missing, expected {expected}")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not above < value < math.inf:
        raise NVFP4Error(f"config: {prefix}{key} is {value!r}, expected {expected}")
    return float(value)


def boolean(config: Mapping[str, Any], key: str, default: bool) -> bool:
    """Return a bool; null and a missing key take the default.

    Raises
    ------
    NVFP4Error
        If the value is no bool.
    """
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise NVFP4Error(f"config: {key} is {value!r}, expected true or false")
    return value


def token_ids(config: Mapping[str, Any], key: str) -> tuple[int, ...]:
    """Return null, one id or a list of ids as a tuple.

    Raises
    ------
    NVFP4Error
        If an entry is no integer.
    """
    value = config.get(key)
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if any(isinstance(i, bool) or not isinstance(i, int) for i in ids):
        raise NVFP4Error(f"config: {key} is {value!r}, expected a token id, a list of token ids, or null")
    return tuple(ids)
