"""Consensus: keep what serves more than one task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from cocktail.methods.blocks import blocks_of, flat


def consensus(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor,
    weights: Sequence[float],
    *,
    k: int,
    tall_lambda: float,
    lambda_: float,
    **_: Any,
) -> torch.Tensor:
    """Adds the sum of the differences where it serves at least k models.

    It serves model i where |delta_i| >= tall_lambda |sum_j delta_j - delta_i| (its TALL mask);
    theta = theta_base + lambda sum_j delta_j there, theta_base elsewhere. k = 0 is task arithmetic,
    k = 1 drops the "catastrophic" weights, which serve no model, and k = 2 also the "selfish" ones,
    which serve only one.
    https://arxiv.org/abs/2405.07813
    """
    for block, *models in blocks_of([flat(base), *map(flat, tensors)]):
        total, served = torch.zeros(2, len(block), dtype=base.dtype)
        for model in models:
            total.add_(model.sub_(block))
        for model in models:
            served.add_(model.abs() >= (total - model).abs_().mul_(tall_lambda))
        block.add_(total.mul_(served.ge_(k)).mul_(lambda_))
    return base
