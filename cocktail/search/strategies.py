"""Strategies: an objective in, weights on the simplex out.

They see values and gradients and nothing else: no checkpoint, no file, no plot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

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


def greedy(value: Callable[[Weights], float], losses: Sequence[float]) -> Weights:
    """Greedy soup: from the best model on, take the next into the average if that helps.

    Wortsman et al., "Model soups" (2022), recipe 1. K - 1 values.

    Args:
        value: the loss of a mix.
        losses: (K,) of the single models.
    """
    order = np.argsort(losses, kind="stable")
    members = [int(order[0])]
    best = float(losses[members[0]])
    for candidate in map(int, order[1:]):
        found = value(_uniform_over([*members, candidate], len(losses)))
        if found < best:
            members, best = [*members, candidate], found
    return _uniform_over(members, len(losses))


def sweep(objective: Objective, points: int = 11) -> list[tuple[Weights, float]]:
    """The curve from the first of two ingredients to the second.

    Returns:
        Weights and values at ``points`` even steps, both ends included.
    """
    shares = np.linspace(0, 1, points)
    grid = [np.array([1 - share, share]) for share in shares]
    return [(weights, objective.value(weights)) for weights in grid]


def blackbox(
    value: Callable[[Weights], float],
    starts: Sequence[Weights],
    *,
    evaluations: int,
) -> Weights:
    """Minimise a function that has no useful gradient, such as a ranking metric.

    COBYLA, from the best of the starts: Powell, "A direct search optimization method that models
    the objective and constraint functions by linear interpolation" (1994).

    Args:
        value: on the simplex.
        starts: points to try first.
        evaluations: at most, the starts included.

    Returns:
        (K,) the best point that was evaluated; among equals the one nearest to the first start.
    """
    seen: list[tuple[float, Weights]] = []

    def at(point: Weights) -> float:
        if len(seen) >= evaluations:
            raise BudgetSpentError(f"{len(seen)} evaluations are done")
        seen.append((value(point), point))
        return seen[-1][0]

    def evaluate(free: Weights) -> float:
        return at(on_simplex(np.append(free, 1 - free.sum())))

    try:
        for start in starts:
            at(start)
        best = min(seen, key=lambda item: item[0])[1]
        free = len(best) - 1  # the last weight is what the others leave
        inside = LinearConstraint(
            np.vstack([np.eye(free), np.ones(free)]), [0.0] * free + [-np.inf], 1.0
        )
        minimize(
            evaluate,
            best[:-1],
            method="COBYLA",
            constraints=inside,
            options={"rhobeg": 0.25, "maxiter": evaluations, "tol": 0.01},
        )
    except BudgetSpentError:
        if not seen:
            raise
    lowest = min(item[0] for item in seen)
    ties = [point for found, point in seen if found <= lowest + 1e-12]
    return min(ties, key=lambda point: float(np.abs(point - starts[0]).sum()))


def on_simplex(weights: Weights) -> Weights:
    """Clip what an optimiser left a hair outside, and divide by the sum."""
    clipped = np.clip(weights, 0.0, None)
    result: Weights = clipped / clipped.sum()
    return result


def uniform(count: int) -> Weights:
    """(K,) the same weight for every ingredient."""
    return np.full(count, 1 / count)


def _uniform_over(members: Sequence[int], count: int) -> Weights:
    weights = np.zeros(count)
    weights[list(members)] = 1 / len(members)
    return weights
