"""The rule that takes a point of a curve: arrays in, a point and the reason out."""

from __future__ import annotations

from collections.abc import Sequence
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
HEAD_START = 2.0
"""Of the middle of the way, in standard errors: what is worth knowing before any example is seen is
that half and half is seldom bad. Found on pairs of models (benchmarks/regret.py), where 1 to 3 do
alike."""


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
    shares: Sequence[float],
    target: Values,
    general: Values | None,
    *,
    max_drop: float,
    seed: int = 0,
) -> Choice:
    """Take the point that is best on the target among those that keep the general values.

    1. A point is allowed as long as no point up to it has a mean rise of the general values beyond
       ``max_drop`` and one standard error of that rise.
    2. Of these, and of those that are better than the base on the target, the one is taken that
       gains most in standard errors, with ``HEAD_START`` of them for the middle of the way.
    3. What is significantly worse than the fine-tune gives way to it, where that is allowed.

    Means are smoothed over neighbours.

    Args:
        shares: (S,) of the way from the base, 0, to the fine-tune, 1.
        target: (N, S) losses of N examples.
        general: (M, S) values of which less is better.
        max_drop: in the unit of ``general``.
        seed: of the bootstrap.
    """
    way = np.asarray(shares)
    last = len(way) - 1
    rises = target - target[:, :1]
    means = smoothed(rises.mean(axis=0))
    unit = max((standard_error(rise) for rise in rises.T), default=0.0) or 1.0
    gains = -means / unit + HEAD_START * 4 * way * (1 - way)
    gains[means >= -ROUNDING] = -np.inf
    gains[0] = -1e9  # last of all, but never out
    allowed = allowed_points(general, max_drop, last + 1)
    wanted = int(np.argmax(gains))
    best = int(np.argmax(np.where(allowed, gains, -np.inf)))
    if best and allowed[last]:
        worse = bootstrap_interval(target[:, best] - target[:, last], seed=seed)
        best = last if worse.above_zero else best
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


def smoothed(values: Values) -> Values:
    """Each value averaged with its neighbours, which count half; the base stays as it is."""
    padded = np.concatenate([values[:1], values, values[-1:]])
    result: Values = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
    result[0] = values[0]
    return result


def held_out_values(
    shares: Sequence[float],
    target: Values,
    general: Values | None,
    *,
    max_drop: float,
    seed: int,
) -> Values:
    """(N,) loss of each example at the point that the examples of the other folds would choose."""
    found = np.empty(len(target))
    for start in range(min(FOLDS, len(target))):
        fold = np.arange(start, len(target), FOLDS)
        training = np.delete(target, fold, axis=0)
        place = choose_point(shares, training, general, max_drop=max_drop, seed=seed).place
        found[fold] = target[fold, place]
    return found
