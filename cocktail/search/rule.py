"""The rule that chooses a point of a curve: arrays in, a point and the reason out."""

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
"""The fewest examples to choose by."""
FOLDS = 5
HEAD_START = 2.0
"""The advantage of the middle of the curve, in standard errors, as half and half is seldom bad even
before any example is seen. Tuned on pairs of models (benchmarks/regret.py), where 1 to 3 do equally
well."""


@dataclass(frozen=True)
class Choice:
    """A point of a curve.

    Attributes:
        place: its index.
        outcome: ``base`` where nothing is gained, ``fine-tune`` where the end of the curve is best,
            ``limited`` where a point further on is better but loses too much in general.
        wanted: index of the point that the target alone would choose.
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
    """Choose the point that is best on the target among those that keep the general values.

    1. A point is allowed if neither it nor any point before it raises the mean of the general
       values by more than ``max_drop`` plus one standard error of that rise.
    2. Among the allowed points that are better than the base on the target, the one that gains most
       in standard errors is chosen; the middle of the curve starts ``HEAD_START`` of them ahead.
    3. If the choice is significantly worse than the fine-tune, the fine-tune takes its place where
       it is allowed.

    Means are smoothed over neighbours.

    Args:
        shares: (S,) positions between the base, 0, and the fine-tune, 1.
        target: (N, S) losses of N examples.
        general: (M, S) values of which less is better.
        max_drop: in the unit of ``general``.
        seed: for the bootstrap.
    """
    way = np.asarray(shares)
    last = len(way) - 1
    rises = target - target[:, :1]
    means = smoothed(rises.mean(axis=0))
    unit = max((standard_error(rise) for rise in rises.T), default=0.0) or 1.0
    gains = -means / unit + HEAD_START * 4 * way * (1 - way)
    gains[means >= -ROUNDING] = -np.inf
    gains[0] = -1e9  # last in line, but never excluded
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
    """(S,) whether each point lies before the first that loses too much; the base always does."""
    if general is None:
        return np.ones(count, dtype=bool)
    rises = general - general[:, :1]
    errors = np.array([standard_error(rise) for rise in rises.T])
    found = smoothed(rises.mean(axis=0)) - errors <= max_drop + ROUNDING
    found[0] = True
    return np.logical_and.accumulate(found)


def keeps(base: Values, values: Values, max_drop: float) -> bool:
    """Whether a mix that lies on no curve keeps the general values (M,), by the first rule."""
    rise = values - base
    return bool(rise.mean() - standard_error(rise) <= max_drop + ROUNDING)


def smoothed(values: Values) -> Values:
    """Each value averaged with its neighbours at half weight; the base stays as it is."""
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
    """(N,) loss of each example at the point that the other folds' examples would choose."""
    found = np.empty(len(target))
    for start in range(min(FOLDS, len(target))):
        fold = np.arange(start, len(target), FOLDS)
        training = np.delete(target, fold, axis=0)
        place = choose_point(shares, training, general, max_drop=max_drop, seed=seed).place
        found[fold] = target[fold, place]
    return found
