"""RegMean: the linear layer that best reproduces each model's outputs on examples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch

from cocktail.methods.linear import weighted_sum
from cocktail.tensors.reading import ROWS

FLOOR = 1e-6
"""The share of the trace to add to the diagonal, well above a Gram matrix's rounding in fp32."""


class Gram(Protocol):
    """What is needed of a Gram matrix: both a tensor and a matrix in a file will do."""

    def split(self, split_size: int) -> Iterable[torch.Tensor]:
        """Runs of that many rows, one after another."""


def regmean(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    weights: Sequence[float],
    *,
    alpha: float,
    statistics: Sequence[Gram] = (),
    **_: Any,
) -> torch.Tensor:
    """Brings each linear layer's outputs on given examples as close as possible to every model's.

    W = (sum_i w_i W_i G_i) (sum_i w_i G_i)^-1 for W of shape (out, in), where G_i = X_i^T X_i for
    the layer's inputs X_i in model i, with its off-diagonal elements multiplied by ``alpha``. All
    other tensors are averaged by weights; so are directions that no input has, as a millionth of
    the trace of sum_i w_i G_i is added to its diagonal. Needs examples (--data).
    https://arxiv.org/abs/2212.09849

    Args:
        weights: 0 or more, not all 0.
        statistics: G_i of each model, shape (in, in), read once; none for a plain average.
    """
    weights = [weight / math.fsum(weights) for weight in weights]
    if not statistics:
        return weighted_sum(tensors, weights)
    first = next(i for i, weight in enumerate(weights) if weight)
    origin = tensors[first]
    total, moved = _sums(tensors, weights, statistics, origin, alpha)
    floor = FLOOR * float(total.trace())
    if floor == 0:
        return weighted_sum(tensors, weights)
    total.diagonal().add_(floor)
    # A symmetric matrix is its own transpose, on which LAPACK works in place.
    torch.linalg.cholesky(total.T, out=total.T)
    for i, rows in enumerate(torch.split(moved, ROWS)):
        part = slice(i * ROWS, i * ROWS + len(rows))
        for tensor, weight in zip(tensors, weights, strict=True):
            if tensor is not origin and weight:
                rows.add_(tensor[part].double().sub_(origin[part]), alpha=floor * weight)
        # Not cholesky_solve, which copies the factor.
        half = torch.linalg.solve_triangular(total.T, rows.T, upper=False)
        origin[part].add_(torch.linalg.solve_triangular(total, half, upper=True).T)
    return origin


def _sums(
    tensors: Sequence[torch.Tensor],
    weights: Sequence[float],
    grams: Sequence[Gram],
    origin: torch.Tensor,
    alpha: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum the Gram matrices, and their products with each model's difference from one model.

    With differences, the answer is exactly zero where all models are equal.

    Returns:
        sum_i w_i G_i of shape (in, in) and sum_i w_i (W_i - W_origin) G_i of shape (out, in), fp64.
    """
    moved = torch.zeros(origin.shape, dtype=torch.float64)
    total = moved.new_zeros(origin.shape[1], origin.shape[1])
    for tensor, weight, gram in zip(tensors, weights, grams, strict=True):
        if not weight:
            continue
        start = 0
        for found in gram.split(ROWS):
            part = slice(start, start + len(found))
            rows = found.double().mul_(alpha * weight)
            rows.diagonal(start).copy_(found.diagonal(start)).mul_(weight)
            total[part].add_(rows)
            if tensor is not origin:
                moved.addmm_(tensor[:, part].double().sub_(origin[:, part]), rows)
            start += len(found)
    return total, moved
