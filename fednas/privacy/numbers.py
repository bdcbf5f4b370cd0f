"""Exact text for numbers and digests: a hash of a plan or an event means the same on every machine."""

import json
import math
import operator
from typing import Any, SupportsFloat, SupportsIndex

import numpy as np


def real(value: object) -> float | None:
    """Return a number as a plain float, or None when it is no number or NaN (a bool is no number)."""
    if isinstance(value, bool | np.bool_ | np.complexfloating | str | bytes) or not isinstance(
        value, SupportsFloat
    ):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return None if math.isnan(number) else number


def count(value: object) -> int | None:
    """Return an integer as a plain int, or None when it is not one (a bool is not)."""
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        return None
    try:
        return operator.index(value)
    except TypeError:  # an array of several numbers offers __index__, and refuses when asked
        return None


def encode_real(value: float) -> str:
    """Return the shortest text that reads back as the same float."""
    return repr(float(value))


def decode_real(text: object) -> float | None:
    """Return the float that `encode_real` wrote, or None for any other spelling of it and for NaN."""
    if not isinstance(text, str) or len(text) > 32:
        return None
    try:
        number = float(text)
    except ValueError:
        return None
    return number if not math.isnan(number) and repr(number) == text else None


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys, no spaces and ASCII only: equal values have equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def is_digest(*values: object) -> bool:
    """Whether all of some values are 64 lower-case hexadecimal digits: a sha256, or a public key."""
    return all(isinstance(v, str) and len(v) == 64 and set(v) <= set("0123456789abcdef") for v in values)
