"""Where the curve of three or more ingredients leads: to the bagged best of them."""

from __future__ import annotations

import numpy as np

from cocktail.measure.mixture import Weights
from cocktail.measure.tasks.task import Values

RESAMPLES = 2_000


def bagged_best(losses: Values, weights: Weights, *, seed: int) -> Weights:
    """The mean, over resamples of the examples, of the weights that are best on a resample.

    A mix that is almost certainly the best gets all the weight; those that the examples cannot
    distinguish are averaged. Bagging a choice: Breiman, "Bagging predictors" (1996); its
    frequencies as weights: Buckland, Burnham & Augustin, "Model selection: an integral part of
    inference" (1997).

    Args:
        losses: (N, A), for each example at each of A mixes.
        weights: (A, K), of these mixes.
        seed: for the resamples.

    Returns:
        (K,)
    """
    count = len(losses)
    drawn = np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))
    best = losses[drawn].mean(axis=1).argmin(axis=1)
    found: Weights = weights[best].mean(axis=0)
    return found
