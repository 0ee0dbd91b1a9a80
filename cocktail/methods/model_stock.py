"""Model Stock: how far to go from the base to the average, derived from the angles."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch

from cocktail.methods.gram import gram, norms_of
from cocktail.methods.linear import weighted_sum


def model_stock(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor,
    weights: Sequence[float],
    *,
    filter_wise: bool,
    **_: Any,
) -> torch.Tensor:
    """Moves from the base toward the average, and less far the more the fine-tunes disagree.

    theta = theta_base + t mean_i delta_i with t = K c / (1 + (K - 1) c), where c is the mean cosine
    between two deltas; t is zero where the denominator is. With ``filter_wise``, every vector along
    the last index has its own t. https://arxiv.org/abs/2403.19522
    """
    count = len(tensors)
    columns = tensors[0].shape[-1] if filter_wise and tensors[0].dim() > 1 else -1
    rows = [tensor.sub_(base).view(*_rows(tensor, columns)) for tensor in tensors]
    products = gram(rows)
    norms = norms_of(products)
    pairs = list(combinations(range(count), 2))
    if not pairs:
        return base.add_(tensors[0])
    cosines = [
        np.clip(products[i, j] / np.maximum(norms[i] * norms[j], 1e-6), -1.0, 1.0) for i, j in pairs
    ]
    cosine = np.mean(cosines, axis=0)
    divisor = 1 + (count - 1) * cosine
    singular = np.abs(divisor) < 1e-6
    share = np.where(singular, 0.0, count * cosine / np.where(singular, 1.0, divisor))
    weighted_sum(tensors, [1 / count] * count)
    rows[0].mul_(torch.from_numpy(share).to(base.dtype).unsqueeze(1))
    return base.add_(tensors[0])


def _rows(tensor: torch.Tensor, columns: int) -> tuple[int, int]:
    """Rows of the given length, or the whole tensor as one row."""
    if columns < 0:
        return 1, tensor.numel()
    return tensor.shape[:-1].numel(), columns
