"""Whether the examples' labels mean anything: would labels at random look as good?

The judges are mixes that no search has fitted to the labels. If those mean nothing, any other
passage of a query might as well be the positive, any other input that of an output. So labels are
drawn anew many times, and what the best judge makes of them is compared with what the best judge
makes of the labels there are: a permutation test of the maximum over the judges, exact for any
number of examples. Fisher, "The Design of Experiments" (1935), section 21; Westfall & Young,
"Resampling-Based Multiple Testing" (1993), section 2.3.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from cocktail.search.objective import Values

_REDRAWN = 2_000
_ROUNDING = 1e-6
"""Relative; scores were computed in fp32."""


def chance_probability(judges: Sequence[Values], *, seed: int) -> float:
    """How likely labels at random look at least as good to the best judge as the labels there are.

    Args:
        judges: M tables (N, G): what each of an example's G possible labels is worth to the judge,
            the label there is in column 0. NaN, on the right, where there are fewer than G.
        seed: of the labels that are drawn.

    Returns:
        The p-value, from 1 / 2,001 to 1.
    """
    worth = np.stack(judges)  # (M, N, G)
    worth = worth - np.nanmean(worth, axis=2, keepdims=True)  # a judge's level says nothing
    counts = (~np.isnan(worth[0])).sum(axis=1)
    random = np.random.default_rng(seed)
    drawn = (random.random((_REDRAWN, len(counts))) * counts).astype(int)
    examples = np.arange(len(counts))
    best = np.max([table[examples, drawn].mean(axis=1) for table in worth], axis=0)
    found = worth[:, :, 0].mean(axis=1).max()
    return float((1 + (best >= found - _ROUNDING * abs(found)).sum()) / (1 + _REDRAWN))


def standing(groups: Tensor) -> Values:
    """(N, G) how far each passage's score lies above its group's mean, in standard deviations.

    That is free of scale and bounded, as ranks are, and tells more than ranks do of five examples.

    Args:
        groups: (N, G) scores, ``-inf`` on the right for no passage, which becomes NaN.
    """
    scores = np.where(groups.isfinite().numpy(), groups.numpy(), np.nan)
    above = scores - np.nanmean(scores, axis=1, keepdims=True)
    spread = np.sqrt(np.nanmean(above**2, axis=1, keepdims=True))
    alike = spread <= _ROUNDING * np.nanmax(np.abs(scores), axis=1, keepdims=True)
    standings: Values = np.where(alike, 0.0 * above, above / np.where(alike, 1.0, spread))
    return standings
