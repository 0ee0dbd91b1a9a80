"""LM-Cocktail's rule: weigh every ingredient by softmax(-L / T) of its loss, measuring no mix."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import softmax
from torch import Tensor

from cocktail.measure.bench import Bench
from cocktail.measure.mixture import Weights
from cocktail.search.options import SearchOptions


def softmax_of_losses(losses: Sequence[float] | Weights, temperature: float) -> Weights:
    """softmax(-L / T): LM-Cocktail, https://arxiv.org/abs/2311.13534, equation 2.

    Args:
        losses: (K,) of the individual models.
    """
    weights: Weights = softmax(-np.asarray(losses, dtype=np.float64) / temperature)
    return weights


def softmax_weights(bench: Bench, rows: Sequence[Tensor], options: SearchOptions) -> Weights:
    """LM-Cocktail's weights, from losses averaged over batches of consecutive examples.

    Args:
        rows: K outputs (R, ...) of the individual ingredients.
    """
    order = bench.given_order
    losses = [bench.task.batch_mean_loss(each, options.batch_size, order) for each in rows]
    return softmax_of_losses(losses, options.temperature)
