"""Which candidate to take: held-out losses compared in pairs, the prior where they are alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri, stdtrit

from cocktail.search.objective import Measurement, Values

EQUAL = "uniform"
"""What one would have mixed without examples, kept where these mean nothing."""
PRIOR = "prior"
"""Each ingredient as far as it may be the best, kept where the examples cannot tell more."""

CONFIDENCE = 0.9
"""Of intervals; the better of two choices is then taken for worse one time in twenty."""
CHANCE = 0.1
"""Labels at random look as good as those there are at most so often; else these mean nothing."""
_RESAMPLES = 10_000
FEWEST = 3
"""Examples below which no interval means anything."""


@dataclass(frozen=True)
class Interval:
    """A mean and its bootstrap interval, of ``CONFIDENCE``."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        ends = f"[{self.low:+.4f}, {self.high:+.4f}]"
        return f"{self.mean:+.4f} ({CONFIDENCE:.0%} interval {ends})"


@dataclass(frozen=True)
class Candidate:
    """A set of weights, and what the mixed model with these weights does.

    Attributes:
        name: ``base``, ``best-single``, ``uniform``, ``lm-cocktail``, ``prior``, ``ensemble``,
            ``gradient``...
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
        abstained: the examples are too few, or may as well be labelled at random.
        difference: held-out loss of the proposal less that of the prior, in pairs; ``None`` where
            there was nothing to compare.
        reason: one sentence.
    """

    chosen: str
    leader: str
    abstained: bool
    difference: Interval | None
    reason: str


def choose(
    candidates: Sequence[Candidate], proposal: str, *, seed: int, chance: float | None = None
) -> Verdict:
    """Take the proposal if the examples surely speak for it, else keep the prior.

    The prior knows what each ingredient is worth by itself, as far as the examples show. Where
    their labels may as well be random, they show nothing: equal weights are kept.

    Args:
        candidates: ``uniform``, ``prior`` and the proposal among them; those without held-out
            losses are not compared.
        proposal: a candidate's name; where it has no held-out losses nothing speaks for it.
        seed: of the bootstrap.
        chance: how likely labels at random look as good, see
            :func:`cocktail.search.permutation_test.chance_probability`; ``None`` where not known.
    """
    compared = {c.name: c.held_out for c in candidates if c.held_out is not None}
    weights = {c.name: c.weights for c in candidates}
    kept = kept_by_default(candidates)
    prior = compared.get(kept)
    if prior is None or len(prior.losses) < FEWEST:
        count = len(candidates[0].measured.losses)
        reason = f"{count} examples are too few to compare anything: {EQUAL} is kept"
        return Verdict(EQUAL, EQUAL, True, None, reason)
    # min keeps the first of equals: candidates come from simple to elaborate.
    leader = min(compared, key=lambda name: compared[name].loss)
    difference = None
    if proposal in compared:
        difference = paired_interval(compared[proposal].losses - prior.losses, seed=seed)
    if chance is not None and chance > CHANCE:
        reason = (
            f"labels at random would look as good to the ingredients with a probability of "
            f"{chance:.2f} (limit {CHANCE}): the examples may as well be labelled at random, "
            f"{EQUAL} is kept"
        )
        return Verdict(EQUAL, leader, True, difference, reason)
    if difference is None:
        reason = f"{proposal} was not cross-validated: {kept} is kept"
        return Verdict(kept, leader, False, None, reason)
    if weights[proposal] == weights[kept]:
        return Verdict(kept, leader, False, None, f"{proposal} came to the same weights as {kept}")
    found = f"{proposal} has a held-out loss {difference} from {kept}'s"
    if difference.high < 0:
        return Verdict(proposal, leader, False, difference, f"{found}: it is better")
    why = "it is worse" if difference.low > 0 else "the examples cannot tell them apart"
    reason = f"{found}: {why}, {kept} is kept"
    return Verdict(kept, leader, False, difference, reason)


def kept_by_default(candidates: Sequence[Candidate]) -> str:
    """What a proposal is compared with: the prior; equal weights where the budget was too small."""
    held_out = [c.name for c in candidates if c.held_out is not None]
    return PRIOR if PRIOR in held_out else EQUAL


def paired_interval(values: Values, *, seed: int) -> Interval:
    """Mean of paired differences and its percentile bootstrap interval, of ``CONFIDENCE``.

    Efron & Tibshirani, "An Introduction to the Bootstrap" (1993), section 13.3. Few values vary
    less in resamples than they do in truth, by sqrt((N - 1) / N), and their spread is itself a
    guess: the interval is widened by both, the latter as Student's t is wider than the normal
    (Hesterberg, "What Teachers Should Know About the Bootstrap", https://arxiv.org/abs/1411.5279).

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
    wider = np.sqrt(count / (count - 1)) * stdtrit(count - 1, tail) / ndtri(tail)
    low, high = mean + (np.quantile(means, [tail, 1 - tail]) - mean) * wider
    return Interval(mean, float(low), float(high))
