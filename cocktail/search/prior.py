"""What is likely of the weights before any are fitted: LM-Cocktail's rule, over mixes as well.

The rule gives every ingredient softmax(-L / T) by its own loss, so that it cannot know when two
ingredients are better mixed than either is alone. Here a few mixes of any two of them stand beside
the ingredients, and the weights are the mean over all of these, each as likely as its loss says: a
Gibbs posterior, Bissiri, Holmes and Walker, "A general framework for updating belief distributions"
(2016). The temperature is that of the noise, which the examples show.

Beyond the loss of a guess among the candidates, what a loss has more counts a tenth. Cross-entropy
has a long tail: a few positives that are ranked last make most of the variance of a mean over few
examples, and say little more than that the model does not know them. Such a mean is an M-estimate,
Huber, "Robust estimation of a location parameter" (1964). The scale of the scores is fitted to the
same losses, so that those few do not set it either, and near that of the other ingredients: each
scale by itself is known badly from so few.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import exp, log

import numpy as np
import torch
from scipy.special import softmax
from torch import Tensor

from cocktail.measure.mixture import Weights, simplex_vertex
from cocktail.measure.tasks.task import Task
from cocktail.search.objective import Values, measure
from cocktail.search.strategies import uniform
from cocktail.search.verdict import FEWEST

TEMPERATURE = 1 / 3
"""In standard errors of the difference of two ingredients' mean losses."""
BETWEEN = 0.25
"""What all mixes count for together where all ingredients count 1. More dilutes an ingredient that
is better than any mix; less is slow to believe in a mix that is better than both its ends."""
STEPS = 4
"""From one ingredient to another."""
BEYOND = 0.1
"""What counts of a loss above that of a guess. If nothing did, a mix might pay for many small gains
with a few great losses, as mixing in noise does."""
LANDMARK_SPREAD = 0.5
"""Standard deviation of a landmark's log scale around the ingredients' median: its own prior."""
_LOG_SCALES = np.linspace(-3, 3, 13) * LANDMARK_SPREAD


@dataclass(frozen=True)
class Landmarks:
    """Ingredients, and mixes of any two, whose outputs are known.

    Attributes:
        weights: (A, K); the first K are the ingredients by themselves.
        counts: (A,) what each counts for before its loss is known.
        rows: A outputs (R, ...).
    """

    weights: Weights
    counts: Values
    rows: Sequence[Tensor]

    @classmethod
    def ingredients(cls, rows: Sequence[Tensor]) -> Landmarks:
        """K outputs (R, ...), one for each ingredient."""
        return cls(np.eye(len(rows)), np.ones(len(rows)), rows)

    @classmethod
    def with_mixes(cls, size: int, run: Callable[[Weights], Tensor]) -> Landmarks:
        """The ingredients, and ``STEPS - 1`` mixes of any two of them.

        Args:
            size: K, at least 2.
            run: output (R, ...) at some weights, or nearly so.
        """
        pairs = list(combinations(range(size), 2))
        shares = np.arange(1, STEPS) / STEPS
        mixes = [
            (1 - share) * simplex_vertex(i, size) + share * simplex_vertex(j, size)
            for i, j in pairs
            for share in shares
        ]
        weights = np.array([*np.eye(size), *mixes])
        counts = np.append(np.ones(size), np.full(len(mixes), BETWEEN * size / len(mixes)))
        return cls(weights, counts, [run(point) for point in weights])


class Prior:
    """Weights that some of the examples make likely.

    Args:
        examples: that count; with fewer than ``FEWEST`` all weights are equal.
        robust: losses count as the module says where there are candidates; else as they are.

    Attributes:
        error: standard error of the difference of two ingredients' mean losses.
        weights: (K,) mean of the landmarks' weights, each counted by exp(-L / T).
    """

    def __init__(
        self, task: Task, landmarks: Landmarks, examples: Sequence[int], *, robust: bool = True
    ) -> None:
        size = landmarks.weights.shape[1]
        alone = [measure(task, [(rows, examples)]) for rows in landmarks.rows[:size]]
        self.error = _error_of_differences(np.array([each.losses for each in alone]))
        self.weights: Weights = uniform(size)
        if len(examples) >= FEWEST:
            if robust and task.scale_free:
                # One that ranks nothing may have any scale: the median does not follow it.
                near = float(np.median([log(each.scale) for each in alone]))
                losses = [_robust(task, rows, examples, near) for rows in landmarks.rows]
            else:
                losses = [measure(task, [(rows, examples)]).losses for rows in landmarks.rows]
            temperature = TEMPERATURE * _error_of_differences(np.array(losses[:size]))
            likely = np.log(landmarks.counts) - np.mean(losses, axis=1) / temperature
            self.weights = softmax(likely) @ landmarks.weights


def _robust(task: Task, rows: Tensor, examples: Sequence[int], near: float) -> Values:
    """(N,) losses as they count, at the scale that makes their mean the lowest.

    Args:
        near: where log s probably is.
    """
    scores = task.scores(rows, examples)

    def losses(scale: float) -> Values:
        return task.losses(scores, torch.tensor(scale, dtype=torch.float64)).numpy()

    guess = losses(0.0)  # all candidates alike
    at = np.array([losses(exp(near + step)) for step in _LOG_SCALES])
    at = np.minimum(at, guess + BEYOND * (at - guess))
    unlikely = _LOG_SCALES**2 / (2 * LANDMARK_SPREAD**2 * len(examples))
    best: Values = at[np.argmin(at.mean(axis=1) + unlikely)]
    return best


def _error_of_differences(losses: Values) -> float:
    """Standard error of the difference of two of (K, N) losses' means.

    From what is left of the losses when some examples are harder and some ingredients better.
    """
    count, examples = losses.shape
    residual = losses - losses.mean(axis=0) - losses.mean(axis=1)[:, None] + losses.mean()
    freedom = max(1, (count - 1) * (examples - 1))
    return max(1e-6, float(np.sqrt(2 * (residual**2).sum() / freedom / examples)))
