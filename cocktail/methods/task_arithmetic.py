"""Methods that add up what fine-tunes changed: thin out, elect signs, combine.

With delta_i = theta_i - theta_base, a method thins out every delta (``sparsify``), weighs them,
drops those elements whose sign lost the vote (``elect``), adds up, may divide by the weights that
took part, scales by lambda and adds the base.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from cocktail.methods.blocks import BLOCK, blocks_of, flat
from cocktail.methods.linear import accumulate
from cocktail.methods.sparsify import keep_largest

Sparsifier = Callable[[torch.Tensor, int], None]
"""Takes the flat delta of a model, to be changed in place, and the model's position."""


def task_arithmetic(
    tensors: Sequence[torch.Tensor], base: torch.Tensor, weights: Sequence[float], **options: Any
) -> torch.Tensor:
    """Adds the weighted differences from the base to it.

    theta = theta_base + lambda sum_i w_i (theta_i - theta_base); with ``normalize`` the sum is
    divided by sum_i w_i. https://arxiv.org/abs/2212.04089
    """
    return _merged(tensors, base, weights, None, elect=False, **options)


def ties(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor,
    weights: Sequence[float],
    *,
    density: Sequence[float],
    **options: Any,
) -> torch.Tensor:
    """Keeps each model's largest differences, elects a sign for each element, averages who agrees.

    Trim: of every delta the ``density`` largest in magnitude stay. Elect: the sign of
    sum_i w_i delta_i, plus where it is zero. Merge: theta = theta_base + lambda
    sum_A w_i delta_i / sum_A w_i, A the models whose weighted delta has that sign.
    https://arxiv.org/abs/2306.01708
    """

    def trim(delta: torch.Tensor, model: int) -> None:
        keep_largest(delta, density[model])

    return _merged(tensors, base, weights, trim, elect=True, **options)


def _merged(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor,
    weights: Sequence[float],
    sparsify: Sparsifier | None,
    *,
    elect: bool,
    normalize: bool,
    lambda_: float,
    **_: Any,
) -> torch.Tensor:
    """Run the three steps; the result lies in ``base``."""
    result = flat(base)
    deltas = [flat(tensor) for tensor in tensors]
    for model, delta in enumerate(deltas):
        delta.sub_(result)
        if sparsify is not None:
            sparsify(delta, model)
    combine = _Elected(weights, base.dtype) if elect else _Summed(weights, base.dtype)
    for block, *parts in blocks_of([result, *deltas]):
        change, divisor = combine(parts)
        if normalize:
            change.div_(divisor)
        if lambda_ != 1:
            change.mul_(lambda_)
        block.add_(change)
    return result.view(base.shape)


class _Summed:
    """sum_i w_i delta_i of a block, and the sum of the weights (1 where that is zero)."""

    def __init__(self, weights: Sequence[float], dtype: torch.dtype) -> None:
        self.weights = weights
        total = float(torch.tensor(weights, dtype=dtype).sum())
        self.divisor = torch.tensor(1.0 if abs(total) < 1e-8 else total, dtype=dtype)
        self.change, self.term = torch.empty(2, BLOCK, dtype=dtype)

    def __call__(self, deltas: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        size = len(deltas[0])
        out, term = self.change[:size], self.term[:size]
        return accumulate(deltas, self.weights, out=out, term=term), self.divisor


class _Elected:
    """The same over those models alone whose weighted delta has the sign of the weighted sum."""

    def __init__(self, weights: Sequence[float], dtype: torch.dtype) -> None:
        self.weights = weights
        self.summed = _Summed(weights, dtype)
        self.change, self.divisor, self.vote = torch.empty(3, BLOCK, dtype=dtype)

    def __call__(self, deltas: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        size = len(deltas[0])
        change, divisor = self.change[:size].zero_(), self.divisor[:size].zero_()
        total, _ = self.summed(deltas)
        # Plus or minus one: an element agrees if its product with that is above zero.
        sign = (total >= 0).to(total.dtype).mul_(2).sub_(1)
        vote = self.vote[:size]
        for delta, weight in zip(deltas, self.weights, strict=True):
            delta.mul_(weight)
            agrees = torch.mul(delta, sign, out=vote).gt_(0)
            change.add_(delta.mul_(agrees))
            divisor.add_(agrees.mul_(weight))
        return change, divisor.masked_fill_(divisor == 0, 1.0)
