"""RegMean: the linear layer that does on the examples what each model's does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from cocktail.methods.linear import weighted_sum

FLOOR = 1e-6
"""What is added on the diagonal, in traces: well above the rounding of a Gram matrix in fp32."""


def regmean(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    weights: Sequence[float],
    *,
    alpha: float,
    statistics: Sequence[torch.Tensor] = (),
    **_: Any,
) -> torch.Tensor:
    """Makes each linear layer's outputs on given examples as near as can be to every model's.

    W = (sum_i w_i W_i G_i) (sum_i w_i G_i)^-1 for W of shape (out, in), where G_i = X_i^T X_i of
    the inputs X_i that the layer has in model i, its elements off the diagonal multiplied by
    ``alpha``. All other tensors are averaged by weights; so are directions that no input has, for
    which a millionth of the trace of sum_i w_i G_i stands on the diagonal. Needs examples (--data).
    https://arxiv.org/abs/2212.09849

    Args:
        weights: 0 or more, not all 0.
        statistics: G_i of each model, shape (in, in); none for a plain average.
    """
    weights = [weight / math.fsum(weights) for weight in weights]
    if not any(bool(gram.any()) for gram in statistics):
        return weighted_sum(tensors, weights)
    total = torch.zeros_like(statistics[0], dtype=torch.float64)
    for gram, weight in zip(statistics, weights, strict=True):
        total.add_(_scaled(gram, alpha, weight))
    floor = FLOOR * float(total.trace())
    first, *others = (i for i, weight in enumerate(weights) if weight)
    origin = tensors[first]
    # What the first model's weights are moved by: exactly nothing where all are equal.
    moved = torch.zeros(origin.shape, dtype=torch.float64)
    for i in others:
        gram = _scaled(statistics[i], alpha, weights[i])
        gram.diagonal().add_(floor * weights[i])
        moved.addmm_(tensors[i].double().sub_(origin), gram)
    total.diagonal().add_(floor)
    factor = torch.linalg.cholesky(total)
    return origin.add_(torch.cholesky_solve(moved.T, factor).T)


def _scaled(gram: torch.Tensor, alpha: float, weight: float) -> torch.Tensor:
    """A Gram matrix in fp64, off the diagonal times ``alpha``, and all of it times a weight."""
    scaled = gram.to(torch.float64, copy=True)
    diagonal = scaled.diagonal().clone()
    scaled.mul_(alpha).diagonal().copy_(diagonal)
    return scaled.mul_(weight)
