"""Reinforced Agent Merging: average only over the models that changed an element."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cocktail.methods.blocks import BLOCK, blocks_of, flat


def ram(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor,
    weights: Sequence[float],
    *,
    epsilon: float,
    **_: Any,
) -> torch.Tensor:
    """Adds to every element the mean difference of the models that changed it.

    theta = theta_base + sum_A delta_i / |A|, where A is the models with |delta_i| > epsilon.
    https://arxiv.org/abs/2601.13572
    """
    _keep_changes(tensors, base, epsilon)
    return _add(tensors, base)


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
    """Works like ram, but amplifies what only one model changed, the more it shares otherwise.

    What only model i changed is multiplied by 1 + r min(alpha, shared_i / alone_i), where shared_i
    and alone_i count the elements of this tensor that it changed with others and on its own.
    https://arxiv.org/abs/2601.13572
    """
    _keep_changes(tensors, base, epsilon)
    shared, alone = _shared_and_alone(tensors)
    more = r * np.minimum(shared / np.maximum(alone, 1), alpha)
    return _add(tensors, base, more.tolist())


def _keep_changes(tensors: Sequence[torch.Tensor], base: torch.Tensor, epsilon: float) -> None:
    """Turn the models into differences from the base, zero where they are not above epsilon."""
    scratch = torch.empty(BLOCK, dtype=base.dtype)
    for block, *models in blocks_of([flat(base), *map(flat, tensors)]):
        mask = scratch[: len(block)]
        for model in models:
            torch.abs(model.sub_(block), out=mask).gt_(epsilon)
            model.mul_(mask)


def _shared_and_alone(deltas: Sequence[torch.Tensor]) -> NDArray[np.float64]:
    """How many elements each model changed with others, and on its own; shape (2, K)."""
    counts = np.zeros((2, len(deltas)))
    takers, mask = torch.empty(2, BLOCK, dtype=deltas[0].dtype)
    for models in blocks_of([flat(delta) for delta in deltas]):
        size = len(models[0])
        lonely = _number_of_takers(models, takers[:size], mask[:size]).eq_(1.0)
        for model, delta in enumerate(models):
            changed = torch.ne(delta, 0.0, out=mask[:size])
            # Sums of zeros and ones are exact far beyond the size of a block.
            alone = float(torch.dot(changed, lonely))
            counts[:, model] += float(changed.sum()) - alone, alone
    return counts


def _number_of_takers(
    deltas: Sequence[torch.Tensor], takers: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """How many models changed each element, in ``takers``; ``mask`` is scratch."""
    takers.zero_()
    for delta in deltas:
        takers.add_(torch.ne(delta, 0.0, out=mask))
    return takers


def _add(
    deltas: Sequence[torch.Tensor], base: torch.Tensor, more: Sequence[float] | None = None
) -> torch.Tensor:
    """Add the mean over the models that changed an element.

    Args:
        more: for each model, the share of what only it changed to add on top.
    """
    scratch = torch.empty(3, BLOCK, dtype=base.dtype)
    for block, *models in blocks_of([flat(base), *map(flat, deltas)]):
        change, takers, mask = scratch[:, : len(block)]
        _number_of_takers(models, takers, mask)
        change.zero_()
        for delta in models:
            change.add_(delta)
        change.div_(torch.clamp(takers, min=1.0, out=mask))
        if more is not None:
            lonely = takers.eq_(1.0)
            for delta, part in zip(models, more, strict=True):
                change.add_(delta.mul_(lonely).mul_(part))
        block.add_(change)
    return base
