"""Reinforced Agent Merging: average only over the models that changed an element."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from cocktail.methods.blocks import BLOCK, blocks_of, flat


def ram(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor,
    weights: Sequence[float],
    *,
    epsilon: float,
    **_: Any,
) -> torch.Tensor:
    """Adds to every element the mean of the differences of those models that changed it.

    theta = theta_base + sum_A delta_i / |A|, A the models with |delta_i| > epsilon.
    https://arxiv.org/abs/2601.13572
    """
    _keep_changes(tensors, base, epsilon)
    return _add(tensors, base, [1.0] * len(tensors))


def ramplus_tl(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor,
    weights: Sequence[float],
    *,
    r: float,
    alpha: float,
    epsilon: float,
    **_: Any,
) -> torch.Tensor:
    """Does as ram, and amplifies what one model alone changed, the more the more it shares.

    What model i alone changed is multiplied by 1 + r min(alpha, shared_i / alone_i), the numbers of
    elements of this tensor that it changed with others and alone. https://arxiv.org/abs/2601.13572
    """
    _keep_changes(tensors, base, epsilon)
    counts = np.zeros((2, len(tensors)))  # shared and alone
    for models in blocks_of([flat(tensor) for tensor in tensors]):
        changed = torch.stack([model != 0 for model in models])
        takers = changed.sum(dim=0)
        for row, of_kind in zip(counts, (takers > 1, takers == 1), strict=True):
            row += (changed & of_kind).numpy().sum(axis=1)
    shared, alone = counts
    ratio = shared / np.maximum(alone, 1)
    return _add(tensors, base, (1 + r * np.minimum(ratio, alpha)).tolist())


def _keep_changes(tensors: Sequence[torch.Tensor], base: torch.Tensor, epsilon: float) -> None:
    """Turn the models into differences from the base, zero where they are not above epsilon."""
    scratch = torch.empty(BLOCK, dtype=base.dtype)
    for block, *models in blocks_of([flat(base), *map(flat, tensors)]):
        mask = scratch[: len(block)]
        for model in models:
            torch.abs(model.sub_(block), out=mask).gt_(epsilon)
            model.mul_(mask)


def _add(
    deltas: Sequence[torch.Tensor], base: torch.Tensor, scales: Sequence[float]
) -> torch.Tensor:
    """Add the mean over the models that changed an element, scaled where there is only one."""
    for block, *models in blocks_of([flat(base), *map(flat, deltas)]):
        total, scaled, count = torch.zeros(3, len(block), dtype=base.dtype)
        for model, scale in zip(models, scales, strict=True):
            total.add_(model)
            count.add_(model != 0)
            scaled.add_(model.mul_(scale))
        block.add_(torch.where(count == 1, scaled, total.div_(count.clamp_(min=1.0))))
    return base
