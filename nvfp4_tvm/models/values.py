"""Typed reads of a model configuration; every refusal names the key, what was found and what is expected."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

from nvfp4_tvm.errors import NVFP4Error

#: Sizes are 32-bit in kernels; what a config may ask for ends here, whatever its tensors are.
MAX_INTEGER = 2**31 - 1


def positive_integer(
    config: Mapping[str, Any],
    key: str,
    default: int | None = None,
    prefix: str = "",
    most: int = MAX_INTEGER,
) -> int:
    """Return an integer from 1 to ``most``; null and a missing key take the default.

    Raises
    ------
    NVFP4Error
        If the value is missing without a default, no integer, or out of range.
    """
    value = config.get(key)
    if value is None:
        value = default
    if value is None:
        raise NVFP4Error(f"config: {prefix}{key} is missing, expected a positive integer")
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise NVFP4Error(f"config: {prefix}{key} is {value!r:.80}, expected a positive integer")
    if value > most:
        raise NVFP4Error(f"config: {prefix}{key} is {value!r:.80}, expected at most {most}")
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
    # An integer may be too large for a float, and still below infinity.
    right = (
        isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    )
    if not right or not value > above:
        raise NVFP4Error(f"config: {prefix}{key} is {value!r:.80}, expected {expected}")
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
        raise NVFP4Error(f"config: {key} is {value!r:.80}, expected true or false")
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
        raise NVFP4Error(f"config: {key} is {value!r:.80}, expected a token id, a list of token ids, or null")
    return tuple(ids)
