"""Which candidate to take: held-out losses compared in pairs, and the prior kept where they tie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cocktail.search.objective import Measurement, Values

PRIOR = "screened"
"""What is kept where the examples cannot tell: the plain average, which one would have mixed
without examples, of all ingredients that the examples do not show to be worse than the best."""

CONFIDENCE = 0.9
"""Of intervals; the better of two choices is then taken for worse one time in twenty."""
_RESAMPLES = 10_000
_FEWEST = 3
"""Examples below which no interval means anything."""


@dataclass(frozen=True)
class Interval:
    """A mean and its bootstrap interval at ``CONFIDENCE``."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Candidate:
    """A set of weights, and what the mixed model with these weights does.

    Attributes:
        name: ``base``, ``best-single``, ``uniform``, ``lm-cocktail``, ``ensemble``, ``gradient``...
        weights: in the order of the ingredients.
        measured: in-sample, on all examples; measured on the mixed model.
        held_out: by cross-validation: each example at weights found without it, measured on the
            mixed model as well; ``None`` where it was not cross-validated.
    """

    name: str
    weights: tuple[float, ...]
    measured: Measurement
    held_out: Measurement | None = None

    @property
    def optimism(self) -> float | None:
        """How much better the in-sample loss looks than the held-out one."""
        return None if self.held_out is None else self.held_out.loss - self.measured.loss


@dataclass(frozen=True)
class Verdict:
    """What was chosen and why.

    Attributes:
        chosen: name of a candidate.
        leader: name of the one with the lowest held-out loss.
        abstained: the leader could not be told from the prior, which was kept.
        difference: held-out loss of the leader less that of the prior, in pairs; ``None`` where
            there was nothing to compare.
        reason: one sentence.
    """

    chosen: str
    leader: str
    abstained: bool
    difference: Interval | None
    reason: str


def choose(candidates: Sequence[Candidate], *, seed: int, prior: str = PRIOR) -> Verdict:
    """Take the candidate with the lowest held-out loss if it is surely better than the prior.

    Args:
        candidates: the prior among them; those without held-out losses are not considered.
        seed: of the bootstrap.
    """
    compared = [c for c in candidates if c.held_out is not None]
    kept = next(c for c in candidates if c.name == prior)
    if kept.held_out is None or len(kept.held_out.losses) < _FEWEST:
        count = len(kept.measured.losses)
        reason = f"{count} examples are too few to compare anything: {prior} is kept"
        return Verdict(prior, prior, True, None, reason)
    # min keeps the first of equals: candidates come from simple to elaborate.
    leader = min(compared, key=lambda c: c.held_out.loss if c.held_out else np.inf)
    if leader.weights == kept.weights or leader.held_out is None:
        reason = f"{prior} has the lowest held-out loss itself"
        return Verdict(prior, prior, False, None, reason)
    difference = paired_interval(leader.held_out.losses - kept.held_out.losses, seed=seed)
    found = (
        f"{leader.name} has a held-out loss {difference.mean:+.4f} from {prior}'s, "
        f"{CONFIDENCE:.0%} interval [{difference.low:+.4f}, {difference.high:+.4f}]"
    )
    if difference.high < 0:
        return Verdict(leader.name, leader.name, False, difference, f"{found}: it is better")
    reason = f"{found}: the examples cannot tell them apart, {prior} is kept"
    return Verdict(prior, leader.name, True, difference, reason)


def screened(losses: Sequence[Values], *, seed: int) -> Values:
    """Equal weights for the ingredients that are not surely worse alone than the best one.

    Args:
        losses: K arrays (N,), each ingredient's by itself on the same examples.

    Returns:
        (K,) weights.
    """
    best = min(losses, key=lambda each: float(each.mean()))
    ruled_out = [
        len(best) >= _FEWEST and paired_interval(each - best, seed=seed).low > 0 for each in losses
    ]
    kept = 1.0 - np.array(ruled_out)
    weights: Values = kept / kept.sum()
    return weights


def paired_interval(values: Values, *, seed: int) -> Interval:
    """Mean of paired differences and its percentile bootstrap interval.

    Efron & Tibshirani, "An Introduction to the Bootstrap" (1993), section 13.3. Few values vary
    less in resamples than they do in truth, by sqrt((N - 1) / N); the interval makes up for that.

    Args:
        values: (N,) one for each example, in an order that does not depend on the file's.
    """
    count = len(values)
    mean = float(values.mean())
    if count < 2:
        return Interval(mean, -np.inf, np.inf)
    drawn = np.random.default_rng(seed).integers(count, size=(_RESAMPLES, count))
    means = values[drawn].mean(axis=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = mean + (np.quantile(means, [tail, 1 - tail]) - mean) * np.sqrt(count / (count - 1))
    return Interval(mean, float(low), float(high))
