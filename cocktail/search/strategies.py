"""Strategies: an objective in, weights on the simplex out.

They see values and gradients and nothing else: no checkpoint, no file, no plot.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import LinearConstraint, minimize
from scipy.special import softmax

from cocktail.measure.mixture import Weights
from cocktail.search.objective import BudgetSpentError, Objective

_NEGLIGIBLE = 1e-4
"""Weights below this are rounding of an optimiser, not a decision."""


def softmax_of_losses(losses: Sequence[float] | Weights, temperature: float) -> Weights:
    """softmax(-L / T): LM-Cocktail, https://arxiv.org/abs/2311.13534, equation 2.

    Args:
        losses: (K,) of the single models.
    """
    weights: Weights = softmax(-np.asarray(losses, dtype=np.float64) / temperature)
    return weights


def descend(
    objective: Objective,
    start: Weights,
    *,
    radius: float = 1.0,
    evaluations: int = 100,
    tolerance: float = 1e-8,
) -> Weights:
    """Sequential quadratic programming on the simplex, inside a box around the start.

    SLSQP: Kraft, "A software package for sequential quadratic programming" (1988).

    Args:
        start: (K,) on the simplex.
        radius: no weight moves further than this from where it starts.
        evaluations: of value and gradient, at most.
        tolerance: of the value.

    Returns:
        (K,) the best point that was evaluated, without the weights that are rounding.
    """
    best: tuple[float, Weights] = (np.inf, start)
    count = 0

    def evaluate(weights: Weights) -> tuple[float, Weights]:
        nonlocal best, count
        if count >= evaluations:
            raise BudgetSpentError(f"{count} evaluations are done")
        count += 1
        point = on_simplex(weights)
        value, gradient = objective.value_and_gradient(point)
        if value < best[0]:
            best = (value, point)
        return value, gradient

    bounds = [(max(0.0, w - radius), min(1.0, w + radius)) for w in start]
    simplex = LinearConstraint(np.ones((1, len(start))), 1, 1)
    try:
        minimize(
            evaluate,
            start,
            jac=True,
            method="SLSQP",
            bounds=bounds,
            constraints=simplex,
            options={"maxiter": evaluations, "ftol": tolerance},
        )
    except BudgetSpentError:
        if count == 0:
            raise
    return on_simplex(np.where(best[1] < _NEGLIGIBLE, 0, best[1]))


def polish(
    objective: Objective,
    surrogate: Objective,
    start: Weights,
    *,
    rounds: int,
    radius: float = 0.25,
    smallest_step: float = 0.02,
) -> Weights:
    """Descend on a costly objective with the curvature of a cheap one.

    At each point the surrogate is tilted so that its gradient is the objective's, and minimised
    inside a trust region; the proposal is taken if the objective agrees, else the region shrinks.
    First-order consistent model management: Alexandrov, Dennis, Lewis and Torczon, "A trust-region
    framework for managing the use of approximation models in optimization" (1998).

    Args:
        surrogate: about as curved as the objective.
        start: (K,) on the simplex.
        rounds: of one gradient and one value of the objective each.
        radius: of the trust region, for each weight.
        smallest_step: where the largest change of a weight is less, it is not worth a value.

    Returns:
        (K,) a point whose value is at most that of the start.
    """
    point = start
    slopes: tuple[float, Weights] | None = None
    for _ in range(rounds):
        if slopes is None:
            slopes = objective.value_and_gradient(point)
        value, gradient = slopes
        tilt = gradient - surrogate.value_and_gradient(point)[1]
        proposal = descend(_Tilted(surrogate, tilt), point, radius=radius)
        step = float(np.abs(proposal - point).max())
        if step < smallest_step:
            break
        if objective.value(proposal) < value:
            point, slopes = proposal, None
        else:
            radius = step / 4
    return point


class _Tilted:
    """An objective with a linear term added to it."""

    def __init__(self, objective: Objective, tilt: Weights) -> None:
        self.size = objective.size
        self._objective = objective
        self._tilt = tilt

    def value(self, weights: Weights) -> float:
        return self._objective.value(weights) + float(self._tilt @ weights)

    def value_and_gradient(self, weights: Weights) -> tuple[float, Weights]:
        value, gradient = self._objective.value_and_gradient(weights)
        return value + float(self._tilt @ weights), gradient + self._tilt


def on_simplex(weights: Weights) -> Weights:
    """Clip what an optimiser left a hair outside, and divide by the sum."""
    clipped = np.clip(weights, 0.0, None)
    result: Weights = clipped / clipped.sum()
    return result


def uniform(count: int) -> Weights:
    """(K,) the same weight for every ingredient."""
    return np.full(count, 1 / count)
