"""Strategies on functions whose optimum is known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from cocktail.search.objective import BudgetSpentError, Regularised
from cocktail.search.strategies import (
    descend,
    polish,
    softmax_of_losses,
    uniform,
)


class Bowl:
    """(w - optimum)' A (w - optimum), with a count of its evaluations."""

    def __init__(self, optimum: list[float], stretch: list[float] | None = None) -> None:
        self.optimum = np.array(optimum)
        self.size = len(optimum)
        self.stretch = np.ones(self.size) if stretch is None else np.array(stretch)
        self.values = self.gradients = 0

    def value(self, weights: np.ndarray) -> float:
        self.values += 1
        return float(self.stretch @ (weights - self.optimum) ** 2)

    def value_and_gradient(self, weights: np.ndarray) -> tuple[float, np.ndarray]:
        self.gradients += 1
        away = weights - self.optimum
        return float(self.stretch @ away**2), 2 * self.stretch * away


def test_softmax_is_lm_cocktails_rule() -> None:
    losses = [1.79, 1.81, 2.72]
    expected = np.exp(-np.array(losses) / 5) / np.exp(-np.array(losses) / 5).sum()
    np.testing.assert_allclose(softmax_of_losses(losses, 5.0), expected)
    np.testing.assert_allclose(softmax_of_losses(losses, 5.0), [0.354, 0.353, 0.294], atol=1e-3)


@pytest.mark.parametrize("optimum", [[0.2, 0.5, 0.3], [0.7, 0.3, 0.0]])
def test_descend_finds_the_optimum_inside_and_on_the_border(optimum: list[float]) -> None:
    found = descend(Bowl(optimum, [1, 3, 2]), uniform(3))
    np.testing.assert_allclose(found, optimum, atol=1e-4)


def test_descend_projects_an_optimum_outside_the_simplex() -> None:
    found = descend(Bowl([1.2, 0.1, -0.3]), uniform(3))
    np.testing.assert_allclose(found, [1.0, 0.0, 0.0], atol=1e-4)


def test_descend_stays_in_its_box_and_within_its_evaluations() -> None:
    bowl = Bowl([0.9, 0.1, 0.0])
    found = descend(bowl, uniform(3), radius=0.1)
    assert np.abs(found - uniform(3)).max() <= 0.1 + 1e-9
    bowl = Bowl([0.9, 0.1, 0.0], [1, 9, 4])
    descend(bowl, uniform(3), evaluations=2)
    assert bowl.gradients == 2


@pytest.mark.parametrize("strength, distance", [(0.0, 0.0), (100.0, 0.8165)])
def test_the_prior_pulls_as_strongly_as_it_is_told(strength: float, distance: float) -> None:
    """Where the optimum is a corner, a strong prior keeps the weights where it has them."""
    found = descend(Regularised(Bowl([1.0, 0.0, 0.0]), strength, uniform(3)), uniform(3))
    assert np.linalg.norm(found - [1, 0, 0]) == pytest.approx(distance, abs=0.02)


def test_descent_does_not_depend_on_the_order_of_ingredients() -> None:
    optimum, stretch = [0.6, 0.3, 0.1], [1.0, 4.0, 2.0]
    found = descend(Bowl(optimum, stretch), uniform(3))
    for order in itertools.permutations(range(3)):
        bowl = Bowl([optimum[i] for i in order], [stretch[i] for i in order])
        np.testing.assert_allclose(descend(bowl, uniform(3)), found[list(order)], atol=1e-5)


def test_polish_needs_one_gradient_where_the_surrogate_has_the_right_curvature() -> None:
    costly = Bowl([0.45, 0.35, 0.2], [1, 3, 2])
    surrogate = Bowl([0.3, 0.3, 0.4], [1, 3, 2])
    found = polish(costly, surrogate, np.array([0.3, 0.3, 0.4]), rounds=1)
    np.testing.assert_allclose(found, costly.optimum, atol=1e-4)
    assert (costly.gradients, costly.values) == (1, 1)


def test_polish_never_ends_above_its_start() -> None:
    """A surrogate that is far too flat proposes leaps; the objective refuses them."""
    costly = Bowl([0.35, 0.33, 0.32], [400, 400, 400])
    surrogate = Bowl([0.0, 0.0, 1.0], [0.01, 0.01, 0.01])
    start = np.array([0.30, 0.35, 0.35])
    found = polish(costly, surrogate, start, rounds=3)
    assert costly.value(found) <= costly.value(start)


def test_nothing_to_spend_is_said() -> None:
    with pytest.raises(BudgetSpentError):
        descend(Bowl([1.0, 0.0]), uniform(2), evaluations=0)
