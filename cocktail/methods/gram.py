"""Inner products of large tensors, precise enough to measure small angles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from cocktail.system.threads import one_torch_thread

_WIDTH = 1 << 16
"""Elements of each tensor at a time: in fp64 a handful of such blocks fit a core's caches."""

Gram = NDArray[np.float64]
"""Shape (K, K, rows): the inner products of row r of K tensors in ``[:, :, r]``."""


def gram(tensors: Sequence[torch.Tensor]) -> Gram:
    """All inner products of K tensors, row by row, in fp64.

    One thread adds them up in pieces of a fixed size, so that the result is always bit-identical.

    Args:
        tensors: K, each of shape (rows, n).
    """
    rows, columns = tensors[0].shape
    count, height = len(tensors), max(1, _WIDTH // max(1, columns))
    products = torch.zeros(rows, count, count, dtype=torch.float64)
    scratch = torch.empty(count * _WIDTH, dtype=torch.float64)
    with one_torch_thread():
        for top in range(0, rows, height):
            for left in range(0, columns, _WIDTH):
                parts = [each[top : top + height, left : left + _WIDTH] for each in tensors]
                size = count * parts[0].numel()
                wide = scratch[:size].view(len(parts[0]), count, -1)
                for place, part in zip(wide.unbind(1), parts, strict=True):
                    place.copy_(part)
                products[top : top + height] += torch.bmm(wide, wide.mT)
    return products.permute(1, 2, 0).numpy()


def norms_of(products: Gram) -> NDArray[np.float64]:
    """The lengths of the K tensors, shape (K, rows)."""
    squares: NDArray[np.float64] = np.einsum("kkr->kr", products)
    return np.sqrt(squares)
