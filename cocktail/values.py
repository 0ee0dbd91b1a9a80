"""What callers and files give, as plain values of Python."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def plain(value: Any) -> Any:
    """The value as YAML knows it: numbers and arrays of NumPy and torch as Python's, sequences as
    lists."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain(item) for item in value]
    return value


def plain_number(value: Any) -> float:
    """The value as a float: infinite where it is too large for one, NaN where it is no number."""
    try:
        # YAML 1.1 reads 1e-3 as text.
        return math.nan if isinstance(value, bool) else float(value)
    except OverflowError:
        return math.inf
    except (TypeError, ValueError):
        return math.nan


def is_number(value: Any) -> bool:
    """Whether it is one, or text that reads as one; a NaN of Python's own is."""
    return isinstance(value, float) or not math.isnan(plain_number(value))
