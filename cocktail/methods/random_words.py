"""Random numbers for the elements of a tensor, each with its own place in a fixed sequence."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

WORDS = 1 << 32
"""How many values a word has."""


class RandomWords:
    """32 random bits for every element of every model, in whatever order they are asked for.

    NumPy's bit generators keep their sequences across versions, and take a fifth of the time of
    torch's; this one jumps to any place at once.

    Args:
        seed: not negative, below 2^64.
        first: where in its tensor the first element lies, for a function that sees only a part.
    """

    def __init__(self, seed: int, first: int = 0) -> None:
        self._seed = seed
        self._first = first

    def of(self, model: int, start: int, count: int) -> NDArray[np.uint32]:
        """The words of a model's elements from ``start`` on, shape (count,)."""
        place = self._first + start
        source = np.random.PCG64DXSM((self._seed, model)).advance(place // 2)
        words = source.random_raw(count // 2 + 1).astype("<u8", copy=False).view("<u4")
        return words[place % 2 :][:count]
