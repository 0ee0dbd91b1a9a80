"""Inner products of large tensors, exact enough to measure small angles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from cocktail.methods.blocks import BLOCK

Gram = NDArray[np.float64]
"""Shape (K, K, rows): the inner products of row r of K tensors in ``[:, :, r]``."""


def gram(tensors: Sequence[torch.Tensor]) -> Gram:
    """All inner products of K tensors, row by row, in fp64, each added up in a fixed order.

    NumPy's own loops do it: they run on one thread, so that the bits depend on nothing else.

    Args:
        tensors: K, each of shape (rows, n).
    """
    rows, columns = tensors[0].shape
    products = np.zeros((len(tensors), len(tensors), rows))
    height = max(1, BLOCK // max(1, columns))
    for top in range(0, rows, height):
        for left in range(0, columns, BLOCK):
            wide = [
                tensor[top : top + height, left : left + BLOCK].numpy().astype(np.float64, "C")
                for tensor in tensors
            ]
            for i, a in enumerate(wide):
                for j, b in enumerate(wide[: i + 1]):
                    products[i, j, top : top + height] += np.einsum("mn,mn->m", a, b)
    for i in range(len(tensors)):
        products[:i, i] = products[i, :i]
    return products


def norms_of(products: Gram) -> NDArray[np.float64]:
    """The lengths of the K tensors, shape (K, rows)."""
    squares: NDArray[np.float64] = np.einsum("kkr->kr", products)
    return np.sqrt(squares)
