"""Cross-validation over examples: what weights are worth on examples they were not found on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from cocktail.kinds.task import Task
from cocktail.search.mixture import Weights
from cocktail.search.objective import (
    EnsembleObjective,
    Measurement,
    Pairs,
    Regularised,
    measure,
)
from cocktail.search.strategies import descend

STRENGTHS = (1.0, 0.3, 0.1, 0.03, 0.01)
"""Of the prior on the weights, in nats of loss for one nat of divergence; strongest first."""
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
    """Kept outputs of ingredients and pairs; see :class:`EnsembleObjective`."""

    task: Task
    kept: Tensor
    pairs: Pairs = ()

    def objective(self, examples: Sequence[int]) -> EnsembleObjective:
        return EnsembleObjective(self.task, self.kept, examples, self.pairs)


def fit_outputs(outputs: Outputs, examples: Sequence[int], prior: Weights) -> tuple[Weights, float]:
    """Weights of the averaged outputs with the prior as strong as cross-validation likes it best.

    Returns:
        (K,) weights and the strength.
    """
    strength = choose_strength(outputs, examples, prior)
    objective = Regularised(outputs.objective(examples), strength, prior)
    # With pairs there may be more than one valley: start in the lowest corner, or the middle.
    inner = [0.9 * vertex + 0.1 * prior for vertex in np.eye(len(prior))]
    start = min((prior, *inner), key=objective.value)
    return descend(objective, start), strength


def choose_strength(outputs: Outputs, examples: Sequence[int], prior: Weights) -> float:
    """The strength of the prior with the lowest cross-validated loss of the averaged outputs.

    Equal losses choose the stronger; so does a single example, which cannot be left out.
    """
    if len(examples) < 2:
        return STRENGTHS[0]
    everything = outputs.objective(examples)
    count = len(examples) if len(examples) <= LEAVE_ONE_OUT else FOLDS
    starts: dict[tuple[int, ...], Weights] = {}

    def held_out_loss(strength: float) -> float:
        def fit(training: Sequence[int]) -> Weights:
            objective = Regularised(outputs.objective(training), strength, prior)
            key = tuple(training)
            # A weaker prior's weights lie beyond those of the stronger one before it.
            starts[key] = descend(objective, starts.get(key, prior), tolerance=1e-5)
            return starts[key]

        return cross_validate(
            outputs.task, examples, fit, lambda weights, _: everything.rows(weights), count
        ).loss

    losses = [held_out_loss(strength) for strength in STRENGTHS]
    return STRENGTHS[int(np.argmin(losses))]
