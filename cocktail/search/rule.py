"""The rule that takes a point of a curve: arrays in, a point and the reason out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

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
    """Take the point that is best on the target among those that keep the general values.

    1. Means are smoothed over neighbours.
    2. A point is allowed as long as no point up to it has a mean rise of the general values beyond
       ``max_drop`` and one standard error of that rise.
    3. Of these the best on the target is taken, unless it is no better than the base, or
       significantly worse than the base or the fine-tune.

    Args:
        target: (N, S) values of N examples at S points, of which less is better; the base first,
            the fine-tune last.
        general: (M, S) values of which less is better.
        max_drop: in the unit of ``general``.
        seed: of the bootstrap.
    """
    last = target.shape[1] - 1
    means = smoothed(target.mean(axis=0))
    allowed = allowed_points(general, max_drop, last + 1)
    wanted = int(np.argmin(means))
    best = int(np.argmin(np.where(allowed, means, np.inf)))
    for other in (0, last) if allowed[last] else (0,):
        if best != other and _worse(target[:, best] - target[:, other], seed):
            best = other
    if best and means[best] >= means[0] - ROUNDING:
        best = 0
    if best == wanted or allowed[wanted]:
        return Choice(best, "base" if best == 0 else "fine-tune" if best == last else "mix", wanted)
    return Choice(best, "limited", wanted)


def allowed_points(general: Values | None, max_drop: float, count: int) -> npt.NDArray[np.bool_]:
    """(S,) the points up to the first that loses too much in general; the base always."""
    if general is None:
        return np.ones(count, dtype=bool)
    rises = general - general[:, :1]
    errors = np.array([standard_error(rise) for rise in rises.T])
    found = smoothed(rises.mean(axis=0)) - errors <= max_drop + ROUNDING
    found[0] = True
    return np.logical_and.accumulate(found)


def _worse(differences: Values, seed: int) -> bool:
    return bootstrap_interval(differences, seed=seed).above_zero


def smoothed(values: Values) -> Values:
    """Each value averaged with its neighbours, which count half; the base stays as it is."""
    padded = np.concatenate([values[:1], values, values[-1:]])
    result: Values = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
    result[0] = values[0]
    return result


def held_out_values(
    target: Values, general: Values | None, *, max_drop: float, seed: int
) -> Values:
    """(N,) value of each example at the point that the examples of the other folds would choose."""
    found = np.empty(len(target))
    for start in range(min(FOLDS, len(target))):
        fold = np.arange(start, len(target), FOLDS)
        training = np.delete(target, fold, axis=0)
        place = choose_point(training, general, max_drop=max_drop, seed=seed).place
        found[fold] = target[fold, place]
    return found
