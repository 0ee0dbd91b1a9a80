"""Means over examples, and how precisely they are known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtri, stdtrit

from cocktail.measure.tasks.task import Values

CONFIDENCE = 0.95
_RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """A mean and its bootstrap interval at ``CONFIDENCE``."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"

    @property
    def above_zero(self) -> bool:
        return self.low > 0

    @property
    def below_zero(self) -> bool:
        return self.high < 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, which lacks the infinite ends of a single example's interval."""
        low, high = (end if np.isfinite(end) else None for end in (self.low, self.high))
        return {"mean": self.mean, "low": low, "high": high}


def bootstrap_interval(values: Values, *, seed: int) -> Interval:
    """The mean of the values and its percentile bootstrap interval at ``CONFIDENCE``.

    Efron & Tibshirani, "An Introduction to the Bootstrap" (1993), section 13.3. Resamples of few
    values vary too little, by a factor of sqrt((N - 1) / N), and their spread is itself an
    estimate: the interval is widened for both, the latter by the ratio of Student's t to the normal
    (Hesterberg, "What Teachers Should Know About the Bootstrap", https://arxiv.org/abs/1411.5279).

    Args:
        values: (N,) one for each example, in an order that does not depend on the file's; for a
            comparison, the paired differences.
    """
    count = len(values)
    mean = float(values.mean())
    if count < 2:
        return Interval(mean, -np.inf, np.inf)
    drawn = np.random.default_rng(seed).integers(count, size=(_RESAMPLES, count))
    means = values[drawn].mean(axis=1)
    tail = (1 - CONFIDENCE) / 2
    wider = np.sqrt(count / (count - 1)) * stdtrit(count - 1, tail) / ndtri(tail)
    low, high = mean + (np.quantile(means, [tail, 1 - tail]) - mean) * wider
    return Interval(mean, float(low), float(high))


def standard_error(values: Values) -> float:
    """The standard error of the mean of (N,) values; infinite for a single value."""
    count = len(values)
    return float(values.std(ddof=1) / np.sqrt(count)) if count > 1 else float("inf")
