"""Inner products of large tensors, exact enough to measure small angles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from cocktail.methods.blocks import blocks_of


def gram(tensors: Sequence[torch.Tensor]) -> np.ndarray:
    """All inner products of K tensors, in fp64, each added up in a fixed order.

    NumPy's own loops do it: they run on one thread, so that the bits depend on nothing else.

    Args:
        tensors: K, each of shape (n,).

    Returns:
        Shape (K, K), symmetric.
    """
    products = np.zeros((len(tensors), len(tensors)))
    for parts in blocks_of(tensors):
        wide = [part.numpy().astype(np.float64) for part in parts]
        for i, left in enumerate(wide):
            for j, right in enumerate(wide[: i + 1]):
                products[i, j] += np.einsum("n,n->", left, right)
    return np.tril(products) + np.tril(products, -1).T
