"""Weights that minimise the target's loss by its exact gradient.

As theta(w) = sum_i w_i theta_i, one backward and one pass over the files give all K derivatives,
whatever K is.
"""

from __future__ import annotations

from contextlib import suppress

import numpy as np
from scipy.optimize import LinearConstraint, minimize

from cocktail.measure.mixture import Weights
from cocktail.search.objective import Objective

EVALUATIONS = 20
_NEGLIGIBLE = 1e-4
"""Weights below this are the optimiser's rounding, not a decision."""


class _EnoughError(Exception):
    """All evaluations are done."""


def descend(objective: Objective, start: Weights, *, evaluations: int = EVALUATIONS) -> Weights:
    """Sequential quadratic programming on the simplex.

    SLSQP: Kraft, "A software package for sequential quadratic programming" (1988).

    Args:
        start: (K,) on the simplex.
        evaluations: the most evaluations of value and gradient.

    Returns:
        (K,) the best point that was evaluated, without weights that are only rounding.
    """
    best: tuple[float, Weights] = (np.inf, start)
    count = 0

    def evaluate(weights: Weights) -> tuple[float, Weights]:
        nonlocal best, count
        if count >= evaluations:
            raise _EnoughError
        count += 1
        point = on_simplex(weights)
        value, gradient = objective.value_and_gradient(point)
        if value < best[0]:
            best = (value, point)
        return value, gradient

    with suppress(_EnoughError):
        minimize(
            evaluate,
            start,
            jac=True,
            method="SLSQP",
            bounds=[(0.0, 1.0)] * len(start),
            constraints=LinearConstraint(np.ones((1, len(start))), 1, 1),
            options={"maxiter": evaluations, "ftol": 1e-5},
        )
    return on_simplex(np.where(best[1] < _NEGLIGIBLE, 0, best[1]))


def on_simplex(weights: Weights) -> Weights:
    """Clip what an optimiser left slightly outside the simplex, and divide by the sum."""
    clipped = np.clip(weights, 0.0, None)
    result: Weights = clipped / clipped.sum()
    return result
