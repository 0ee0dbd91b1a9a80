"""Numbers from callers and files: plain values, sums of weights, and shares of the sum."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cocktail.errors import RecipeError, listed

_ROUNDING = 1e-8


def plain(value: Any) -> Any:
    """The value in YAML's types: NumPy's and torch's numbers and arrays as Python's, sequences as
    lists."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain(item) for item in value]
    return value


def plain_number(value: Any) -> float:
    """The value as a float: infinite where it is too large, NaN where it is not a number."""
    try:
        # YAML 1.1 reads 1e-3 as text.
        return math.nan if isinstance(value, bool) else float(value)
    except OverflowError:
        return math.inf
    except (TypeError, ValueError):
        return math.nan


def is_number(value: Any) -> bool:
    """Whether the value is a number, or text that reads as one; a Python NaN counts."""
    return isinstance(value, float) or not math.isnan(plain_number(value))


def read_weights(weights: Any) -> tuple[float, ...]:
    """The weights that a caller gave in any kind of sequence; empty if none were given.

    Raises:
        RecipeError: one is not a number.
    """
    given = plain(() if weights is None else weights)
    if not isinstance(given, list) or not all(map(is_number, given)):
        raise RecipeError(f"weights are {weights!r:.80} - they must be numbers - correct them")
    return tuple(map(plain_number, given))


def exact_sum(numbers: Iterable[float]) -> float:
    """The sum, exact to rounding; NaN where it overflows."""
    try:
        return math.fsum(numbers)
    except (OverflowError, ValueError):
        return math.nan


def cancel(weights: Sequence[float]) -> bool:
    """Whether the sum is no divisor: zero to rounding, or not finite."""
    total = exact_sum(weights)
    return not _ROUNDING * exact_sum(map(abs, weights)) < abs(total) < math.inf


def shares(weights: Sequence[float]) -> list[float]:
    """Weights divided by their sum; equal shares where all are zero.

    Raises:
        RecipeError: they cancel each other out.
    """
    if not any(weights):
        return [1 / len(weights)] * len(weights)
    total = exact_sum(weights)
    if cancel(weights):
        raise RecipeError(
            f"weights {listed([f'{weight:g}' for weight in weights])} sum to {total:.3g} - tensors "
            "that only some models have are averaged in the proportions of their weights - give "
            "others"
        )
    return [weight / total for weight in weights]
