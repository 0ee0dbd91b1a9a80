"""Cross-validation over examples: what weights are worth on examples they were not found on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from cocktail.measure.mixture import Weights
from cocktail.measure.tasks.task import Task
from cocktail.search.objective import (
    EnsembleObjective,
    Measurement,
    Objective,
    Pairs,
    Regularised,
    measure,
)
from cocktail.search.prior import Landmarks, Prior
from cocktail.search.strategies import descend, uniform

STRENGTHS = (4.0, 2.0, 1.0, 0.5)
"""Of the prior on the weights, strongest first; the unit is the standard error of the difference of
two ingredients' mean losses, in nats of loss for one nat of divergence."""
FOLDS = 5
LEAVE_ONE_OUT = 8
"""Up to this many examples each is left out by itself where that needs no forward."""


def folds(examples: Sequence[int], count: int = FOLDS) -> list[list[int]]:
    """Deal examples out to at most ``count`` folds; ``examples`` are in a random order already."""
    count = min(count, len(examples))
    return [list(examples[start::count]) for start in range(count)]


def rest(examples: Sequence[int], fold: Sequence[int]) -> list[int]:
    """The examples that are not in the fold."""
    left_out = set(fold)
    return [example for example in examples if example not in left_out]


def cross_validate(
    task: Task,
    examples: Sequence[int],
    fit: Callable[[Sequence[int]], Weights],
    run: Callable[[Weights, Sequence[int]], Tensor],
    count: int = FOLDS,
) -> Measurement:
    """Held-out losses of a procedure.

    Args:
        fit: finds weights on some examples.
        run: rows of a model with these weights on other examples. Where the task is entangled
            these are all examples: a held-out query meets the same candidates as in-sample.
        count: folds.

    Returns:
        One value for each example, in the order of ``examples``; one scale fitted to all of them.
    """
    parts = folds(examples, count)
    blocks = []
    for part in parts:
        weights = fit(rest(examples, part))
        blocks.append((run(weights, examples if task.entangled else part), part))
    found = measure(task, blocks, examples if task.entangled else None)
    order = np.argsort([examples.index(example) for part in parts for example in part])
    metrics = None if found.metrics is None else found.metrics[order]
    return Measurement(found.losses[order], found.scale, found.penalty, metrics)


@dataclass(frozen=True)
class Outputs:
    """What fits are made of.

    Attributes:
        task: whose loss counts.
        kept: (K + P, R, ...) outputs of ingredients and pairs; see :class:`EnsembleObjective`.
        landmarks: of the prior.
        pairs: P of them.
    """

    task: Task
    kept: Tensor
    landmarks: Landmarks
    pairs: Pairs = ()

    def objective(self, examples: Sequence[int]) -> EnsembleObjective:
        return EnsembleObjective(self.task, self.kept, examples, self.pairs)


@dataclass(frozen=True)
class Fit:
    """Weights, and what held them back while they were found.

    Attributes:
        weights: (K,).
        strength: of the prior.
        prior: (K,) weights of a :class:`Prior`.
    """

    weights: Weights
    strength: float
    prior: Weights

    def regularised(self, objective: Objective) -> Regularised:
        """Another objective, held back in the same way."""
        return Regularised(objective, self.strength, self.prior)


class _Fitting:
    """Fits of averaged outputs to some of the examples, at any strength of the prior.

    Few examples leave all ingredients alike in the prior; where they show that one is bad by
    itself, it does not get in because it happens to help in a mix.
    """

    def __init__(self, outputs: Outputs, examples: Sequence[int]) -> None:
        self.objective = outputs.objective(examples)
        self.prior = Prior(outputs.task, outputs.landmarks, examples)

    def fit(self, multiple: float, start: Weights | None = None, tolerance: float = 1e-8) -> Fit:
        """The best weights with a prior whose strength is ``multiple`` standard errors."""
        strength = multiple * self.prior.error
        prior = np.maximum(self.prior.weights, 1e-12)
        made = Fit(prior, strength, prior)
        held_back = made.regularised(self.objective)
        if start is None:
            # With pairs there may be more than one valley.
            middle = uniform(len(prior))
            corners = [0.9 * vertex + 0.1 * middle for vertex in np.eye(len(prior))]
            start = min((prior, middle, *corners), key=held_back.value)
        return replace(made, weights=descend(held_back, start, tolerance=tolerance))


def fit_outputs(outputs: Outputs, examples: Sequence[int]) -> Fit:
    """Weights of the averaged outputs with the prior as strong as cross-validation likes it best.

    A single example says nothing about weights: it gives equal ones.
    """
    if len(examples) < 2:
        equal = uniform(outputs.objective(examples).size)
        return Fit(equal, 1.0, equal)
    return _Fitting(outputs, examples).fit(choose_strength(outputs, examples))


def choose_strength(outputs: Outputs, examples: Sequence[int]) -> float:
    """The multiple in ``STRENGTHS`` with the lowest cross-validated loss of the averaged outputs.

    Equal losses choose the stronger.
    """
    everything = outputs.objective(examples)
    count = len(examples) if len(examples) <= LEAVE_ONE_OUT else FOLDS
    fittings: dict[tuple[int, ...], _Fitting] = {}
    starts: dict[tuple[int, ...], Weights] = {}

    def held_out_loss(multiple: float) -> float:
        def fit(training: Sequence[int]) -> Weights:
            key = tuple(training)
            if key not in fittings:
                fittings[key] = _Fitting(outputs, training)
            # A weaker prior's weights lie beyond those of the stronger one before it.
            starts[key] = fittings[key].fit(multiple, starts.get(key), tolerance=1e-5).weights
            return starts[key]

        return cross_validate(
            outputs.task, examples, fit, lambda weights, _: everything.rows(weights), count
        ).loss

    losses = [held_out_loss(multiple) for multiple in STRENGTHS]
    return STRENGTHS[int(np.argmin(losses))]
