"""Fisher merging: weigh each element by its importance to the examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from cocktail.methods.blocks import blocks_of, flat


def fisher(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    weights: Sequence[float],
    *,
    floor: float,
    statistics: Sequence[torch.Tensor] = (),
    **_: Any,
) -> torch.Tensor:
    """Averages each element by how much the loss on given examples depends on it in each model.

    theta = sum_i w_i F_i theta_i / sum_i w_i F_i, element by element. F_i is the diagonal of model
    i's empirical Fisher information, the mean over the examples of the squared gradient of one
    example's loss, plus ``floor``, so that elements without any influence are averaged by weights.
    Needs examples (--data).
    https://arxiv.org/abs/2111.09832

    Args:
        weights: 0 or more, not all 0.
        statistics: F_i of each model, shaped like the tensors; none for a plain average.
    """
    count = len(tensors)
    for parts in blocks_of([*map(flat, tensors), *map(flat, statistics)]):
        models, found = parts[:count], parts[count:]
        shares = [
            (found[i].add_(floor) if found else torch.ones_like(model)).mul_(weight)
            for i, (model, weight) in enumerate(zip(models, weights, strict=True))
        ]
        first, *others = (i for i in range(count) if weights[i])
        mixed, total = models[first], shares[first]
        for i in others:
            # A running mean: where the models are equal, it stays bit for bit what they are.
            total.add_(shares[i])
            mixed.add_(models[i].sub_(mixed).mul_(shares[i].div_(total)))
        models[0].copy_(mixed)
    return tensors[0]
