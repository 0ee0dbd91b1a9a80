"""Dropout masks for a CPU, drawn eight bits an element.

torch draws a CPU's masks one Bernoulli number at a time in one thread. Here eight elements share a
draw of 64 bits: an element is dropped if its eight bits are among the lowest n of 256. For p = 0.1
n should be 25.6, so each block of elements takes either 25 or 26, by another draw. Every element is
dropped with probability p, to 2^-24.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

MOST = 255 / 256
"""The largest probability that eight bits know: one value of 256 is always kept."""
_BLOCK = 1024  # elements that take the same n; multiple of 8


class DropoutMasks:
    """A stream of masks, seeded from torch's generator: seeds and restores of that one rule it."""

    def __init__(self) -> None:
        self._random = np.random.SFC64(int(torch.randint(1 << 62, ())))

    def draw(self, shape: Sequence[int], p: float) -> Tensor:
        """Return bytes (*shape): 0 with probability p, which is at most ``MOST``, else 1."""
        count = math.prod(shape)
        blocks = -(-count // _BLOCK)
        lowest, rest = divmod(p * 256, 1)
        more = self._random.random_raw(-(-blocks // 4)).view(np.uint16)[:blocks] < rest * (1 << 16)
        dropped = (lowest + more).astype(np.uint8)
        words = self._random.random_raw(blocks * (_BLOCK // 8)).view(np.uint8)
        # NumPy compares whole registers of such short numbers; torch takes five times as long.
        kept = words.reshape(blocks, _BLOCK) >= dropped[:, None]
        return torch.from_numpy(kept.view(np.uint8)).view(-1)[:count].view(*shape)
