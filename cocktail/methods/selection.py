"""Keep the elements of certain ranks by magnitude, without sorting the tensor.

The threshold is exact: a sample gives a narrow bracket around it, one pass counts what lies below
the bracket and gathers what lies inside, and the threshold is selected among the few gathered
elements. If the bracket misses it, it is selected among all elements.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cocktail.methods.blocks import BLOCK, blocks_of

_SAMPLE = 1 << 16
_SMALL = 1 << 18
# The rank of the wanted quantile within the sample has a standard deviation of at most half the
# root of the sample's size; six of them miss once in a billion tensors.
_MARGIN = 3 * math.isqrt(_SAMPLE)


@dataclass(frozen=True)
class Cut:
    """A value in the order of magnitudes, with how many elements are smaller and how many equal."""

    value: float
    below: int
    equal: int


def magnitude_cut(values: torch.Tensor, rank: int) -> Cut:
    """Find the magnitude at a rank, 0 for the smallest.

    Args:
        values: shape (n,), n > rank, finite.
    """
    low, high = _bracket(values, rank)
    below, gathered = _gather(values, low, high)
    if not below <= rank < below + len(gathered):
        below, gathered = _gather(values, 0.0, math.inf)
    place = rank - below
    gathered.partition(place)
    value = gathered[place]
    smaller = int(np.count_nonzero(gathered[:place] < value))
    equal = int(np.count_nonzero(gathered == value))
    return Cut(float(value), below + smaller, equal)


def _bracket(values: torch.Tensor, rank: int) -> tuple[float, float]:
    """Two magnitudes that most likely enclose the wanted one."""
    if len(values) <= _SMALL:
        return 0.0, math.inf
    # Positions are drawn with a fixed seed: evenly spaced ones would see only a single column of
    # some matrices. The result does not depend on them.
    places = np.random.Generator(np.random.PCG64(0)).integers(0, len(values), _SAMPLE)
    sample = np.abs(values.numpy()[places])
    sample.sort()
    middle = rank * _SAMPLE // len(values)
    low = sample[middle - _MARGIN] if middle >= _MARGIN else 0.0
    high = sample[middle + _MARGIN] if middle + _MARGIN < _SAMPLE else math.inf
    return float(low), float(high)


def _gather(values: torch.Tensor, low: float, high: float) -> tuple[int, NDArray[Any]]:
    """Count the magnitudes below ``low`` and copy those from ``low`` to ``high``."""
    scratch = np.empty(BLOCK, values.numpy().dtype)
    below = 0
    gathered = []
    for (block,) in blocks_of([values]):
        magnitudes = np.abs(block.numpy(), out=scratch[: len(block)])
        rest = magnitudes >= low
        below += len(block) - int(np.count_nonzero(rest))
        rest &= magnitudes <= high
        gathered.append(magnitudes[rest])
    return below, np.concatenate(gathered)


def keep_ranks(values: torch.Tensor, low: int, high: int) -> None:
    """Set to zero all elements whose rank by magnitude is not in ``low:high``.

    Of equal magnitudes the first counts as the largest, so that the number kept is exact.

    Args:
        values: shape (n,), finite; changed in place.
    """
    count = len(values)
    if low >= high:
        values.zero_()
        return
    bottom = magnitude_cut(values, low) if low > 0 else None
    top = magnitude_cut(values, high - 1) if high < count else None
    # First whole groups of equal elements, then the surplus of the two groups at the edges.
    if bottom is not None:
        _zero_where(values, torch.ge, bottom.value)
        _zero_equal(values, bottom.value, bottom.below + bottom.equal - low, bottom.equal)
    if top is not None:
        _zero_where(values, torch.le, top.value)
        _zero_equal(values, top.value, 0, top.below + top.equal - high)


def _zero_where(values: torch.Tensor, keep: Callable[..., torch.Tensor], value: float) -> None:
    """Set to zero every element whose comparison with ``value`` is false."""
    scratch = torch.empty(2, BLOCK, dtype=values.dtype)
    for (block,) in blocks_of([values]):
        magnitudes, mask = scratch[:, : len(block)]
        # Multiply by ones and zeros: masked_fill_ takes eight times as long.
        block.mul_(keep(torch.abs(block, out=magnitudes), value, out=mask))


def _zero_equal(values: torch.Tensor, value: float, start: int, stop: int) -> None:
    """Of the elements of one magnitude, set numbers ``start:stop`` to zero."""
    seen = 0
    if value == 0:
        return
    for (block,) in blocks_of([values]):
        if start >= stop or seen >= stop:
            return
        places = (block.abs() == value).nonzero().view(-1)
        block[places[max(0, start - seen) : max(0, stop - seen)]] = 0.0
        seen += len(places)
