"""Ways to thin out what a fine-tune changed, in place.

``density`` is the share of the elements that stay: all at 1, none at 0.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from cocktail.errors import RecipeError
from cocktail.methods.blocks import BLOCK, blocks_of
from cocktail.methods.random_words import WORDS, RandomWords
from cocktail.methods.selection import keep_ranks


def keep_largest(delta: torch.Tensor, density: float) -> None:
    """Keep the elements with the largest magnitudes, at least one.

    Args:
        delta: shape (n,).
    """
    if density < 1:
        count = delta.numel()
        kept = max(1, int(density * count)) if density > 0 else 0
        keep_ranks(delta, count - kept, count)


def keep_middle(delta: torch.Tensor, density: float, gamma: float) -> None:
    """Drop the share ``gamma`` of the largest magnitudes, then as many of the smallest as needed.

    Args:
        delta: shape (n,).
    """
    if density < 1:
        count = delta.numel()
        kept = int(density * count)
        low = max(0, count - kept - int(gamma * count))
        keep_ranks(delta, low, low + kept)


def drop_at_random(delta: torch.Tensor, density: float, generator: RandomWords, model: int) -> None:
    """Keep every element with the probability ``density``.

    Args:
        delta: shape (n,).
        model: whose delta it is.
    """
    if density >= 1:
        return
    limit = np.uint32(min(WORDS - 1, round(density * WORDS)))
    scratch = torch.empty(BLOCK, dtype=delta.dtype)
    start = 0
    for (block,) in blocks_of([delta]):
        keep = scratch[: len(block)]
        np.less(generator.of(model, start, len(block)), limit, out=keep.numpy())
        block.mul_(keep)
        start += len(block)


def drop_by_rank(
    delta: torch.Tensor, density: float, epsilon: float, generator: RandomWords, model: int
) -> None:
    """Keep every element with a probability that grows with its rank by magnitude in its row.

    From ``density - epsilon`` for the smallest of a row to ``density + epsilon`` for the largest;
    of equal magnitudes the first is the smaller.

    Args:
        delta: shape (rows, n).
        model: whose delta it is.

    Raises:
        RecipeError: a probability would not be between 0 and 1.
    """
    if density >= 1:
        return
    if density <= 0:
        delta.zero_()
        return
    if density + epsilon >= 1 or density - epsilon <= 0:
        raise RecipeError(
            f"density is {density:g} and epsilon {epsilon:g} - density minus epsilon and density "
            "plus epsilon must lie between 0 and 1 - lower epsilon"
        )
    rows, columns = delta.shape
    steps = np.linspace(-epsilon, epsilon, columns) if columns > 1 else np.zeros(columns)
    limits = np.minimum(np.round((density + steps) * WORDS), WORDS - 1).astype(np.uint32)
    height = max(1, BLOCK // max(1, columns))
    for top in range(0, rows, height):
        block = delta[top : top + height]
        keep = np.empty(block.shape, block.numpy().dtype)
        words = generator.of(model, top * columns, keep.size)
        drawn = words.reshape(keep.shape) < limits
        np.put_along_axis(keep, _order(block.numpy()), drawn, axis=1)
        block.mul_(torch.from_numpy(keep))


def _order(block: NDArray[np.floating]) -> NDArray[np.int64]:
    """The columns of every row from the smallest magnitude to the largest.

    The bits of a positive float, read as an integer, grow with it. With the column number in the
    lower bits, all keys differ: sorting them takes a fraction of the time of an argsort, and every
    sort gives the same order.
    """
    bits = np.abs(block).astype(np.float32, copy=False).view(np.uint32)
    keys: NDArray[np.int64] = bits.astype(np.int64) << 32
    keys |= np.arange(block.shape[1])
    keys.sort(axis=1)
    keys &= WORDS - 1
    return keys


def magnitude_sum(delta: torch.Tensor) -> float:
    """sum |delta|, shape (n,), added up in a fixed order."""
    return sum(float(np.abs(block.numpy()).sum()) for (block,) in blocks_of([delta]))
