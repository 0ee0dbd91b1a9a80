"""Add up weighted deltas block by block: all of them, or those that agree on a sign."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cocktail.methods.blocks import BLOCK
from cocktail.methods.linear import accumulate


class WeightedSum:
    """sum_i w_i delta_i of a block, and the sum of the weights."""

    def __init__(self, weights: Sequence[float], dtype: torch.dtype) -> None:
        self.weights = weights
        self.divisor = torch.tensor(weights, dtype=dtype).sum()
        self.change, self.term = torch.empty(2, BLOCK, dtype=dtype)

    def __call__(self, deltas: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Both, in memory that the next call overwrites."""
        size = len(deltas[0])
        out, term = self.change[:size], self.term[:size]
        return accumulate(deltas, self.weights, out=out, term=term), self.divisor


class ElectedSum:
    """The same over the models that agree with the elected sign, element by element.

    The sign is that of sum_i v_i delta_i, plus where that is zero; a model agrees if w_i delta_i
    has it. Zeros never agree.

    Args:
        votes: v, with the same signs as the weights.
    """

    def __init__(
        self, weights: Sequence[float], votes: Sequence[float], dtype: torch.dtype
    ) -> None:
        self.weights = weights
        self.ballot = WeightedSum(votes, dtype)
        self.change, self.divisor, self.term, self.agrees = torch.empty(4, BLOCK, dtype=dtype)

    def __call__(self, deltas: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Both, in memory that the next call overwrites."""
        size = len(deltas[0])
        change, divisor = self.change[:size].zero_(), self.divisor[:size].zero_()
        term, agrees = self.term[:size], self.agrees[:size]
        total, _ = self.ballot(deltas)
        sign = torch.ge(total, 0.0, out=total).mul_(2.0).sub_(1.0)
        for delta, weight in zip(deltas, self.weights, strict=True):
            torch.mul(delta, sign, out=agrees)
            # Sums of the weight alone stay exactly zero where no model agrees.
            (agrees.gt_ if weight > 0 else agrees.lt_)(0.0).mul_(weight)
            change.add_(torch.mul(delta, agrees, out=term))
            divisor.add_(agrees)
        return change, divisor
