"""The rule that takes a point of a curve: arrays in, a point and the reason out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from cocktail.measure.tasks.task import Values
from cocktail.search.intervals import bootstrap_interval, standard_error

Outcome = Literal["mix", "fine-tune", "base", "limited"]
ROUNDING = 1e-9
FEWEST = 3
"""Examples below which nothing is chosen."""
FOLDS = 5


@dataclass(frozen=True)
class Choice:
    """A point of a curve.

    Attributes:
        place: its index.
        outcome: ``base`` where nothing is gained, ``fine-tune`` where the end of the curve is best,
            ``limited`` where a point further on is better and loses too much in general.
        wanted: index of the point that the target alone would take.
    """

    place: int
    outcome: Outcome
    wanted: int


def choose_point(
    target: Values, general: Values | None, *, max_drop: float, seed: int = 0
) -> Choice:
    """Take the point whose smoothed mean on the target is the lowest among those allowed.

    A point is allowed if its mean rise of the general values is at most ``max_drop`` and one
    standard error of that rise. What is significantly worse than the base on the target is never
    taken.

    Args:
        target: (N, S) losses of N examples at S points, the base first, the fine-tune last.
        general: (M, S) values of which less is better.
        max_drop: in the unit of ``general``.
        seed: of the bootstrap.
    """
    count = target.shape[1]
    means = smoothed(target.mean(axis=0))
    allowed = allowed_points(general, max_drop, count)
    wanted = int(np.argmin(means))
    best = int(np.argmin(np.where(allowed, means, np.inf)))
    if best and means[best] >= means[0]:
        best = 0
    if best and bootstrap_interval(target[:, best] - target[:, 0], seed=seed).above_zero:
        best = 0
    if best == 0:
        return Choice(0, "limited" if wanted and not allowed[wanted] else "base", wanted)
    if best < wanted and not allowed[wanted]:
        return Choice(best, "limited", wanted)
    return Choice(best, "fine-tune" if best == count - 1 else "mix", wanted)


def allowed_points(general: Values | None, max_drop: float, count: int) -> np.ndarray:
    """(S,) which points lose at most ``max_drop`` in general, give or take a standard error."""
    if general is None:
        return np.ones(count, dtype=bool)
    rises = general - general[:, :1]
    found = [rise.mean() - standard_error(rise) <= max_drop + ROUNDING for rise in rises.T]
    return np.array([True, *found[1:]])


def smoothed(values: Values) -> Values:
    """Each value averaged with its neighbours, which count half; ends with the one they have."""
    padded = np.concatenate([values[:1], values, values[-1:]])
    result: Values = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
    return result


def held_out_losses(
    target: Values, general: Values | None, *, max_drop: float, seed: int
) -> Values:
    """(N,) loss of each example at the point that the examples of the other folds would choose."""
    found = np.empty(len(target))
    for start in range(min(FOLDS, len(target))):
        fold = np.arange(start, len(target), FOLDS)
        training = np.delete(target, fold, axis=0)
        place = choose_point(training, general, max_drop=max_drop, seed=seed).place
        found[fold] = target[fold, place]
    return found
