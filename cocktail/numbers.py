"""Sums of mixing weights, and what is divided by them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from cocktail.errors import RecipeError, listed
from cocktail.values import is_number, plain, plain_number

_ROUNDING = 1e-8


def read_weights(weights: Any) -> tuple[float, ...]:
    """The weights that a caller gave, in any kind of sequence; none where none were given.

    Raises:
        RecipeError: one is no number.
    """
    given = plain(() if weights is None else weights)
    if not isinstance(given, list) or not all(map(is_number, given)):
        raise RecipeError(f"weights are {weights!r:.80} - they must be numbers - correct them")
    return tuple(map(plain_number, given))


def exact_sum(numbers: Iterable[float]) -> float:
    """The sum, exact to rounding; NaN where it is beyond all numbers."""
    try:
        return math.fsum(numbers)
    except (OverflowError, ValueError):
        return math.nan


def cancel(weights: Sequence[float]) -> bool:
    """Whether nothing can be divided by the sum: it is zero to rounding, or not finite."""
    total = exact_sum(weights)
    return not _ROUNDING * exact_sum(map(abs, weights)) < abs(total) < math.inf


def shares(weights: Sequence[float]) -> list[float]:
    """Weights divided by their sum, equal ones where all are zero.

    Raises:
        RecipeError: they cancel each other out.
    """
    if not any(weights):
        return [1 / len(weights)] * len(weights)
    total = exact_sum(weights)
    if cancel(weights):
        raise RecipeError(
            f"weights {listed([f'{weight:g}' for weight in weights])} sum to {total:.3g} - what "
            "only some models have is averaged in the proportions of their weights - give others"
        )
    return [weight / total for weight in weights]
