"""Weighted sums of tensors, on which several methods are built."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from cocktail.errors import RecipeError
from cocktail.methods.blocks import BLOCK, blocks_of, flat
from cocktail.numbers import cancel, exact_sum


def accumulate(
    tensors: Iterable[torch.Tensor],
    weights: Sequence[float],
    *,
    out: torch.Tensor,
    term: torch.Tensor,
) -> torch.Tensor:
    """Add up K weighted tensors one after another, in ``out``'s precision.

    Products are rounded before they are added, without fused operations, so that every processor
    and every alignment gives the same bits.

    Args:
        tensors: K tensors of shape (n,), any floating dtype; each is used before the next is taken.
        weights: K numbers; the sum of none is zero.
        out: shape (n,), fp32 or fp64; overwritten.
        term: scratch like ``out``.

    Returns:
        ``out``.
    """
    if not weights:
        return out.zero_()
    for position, (tensor, weight) in enumerate(zip(tensors, weights, strict=True)):
        target = term if position else out
        target.copy_(tensor).mul_(weight)
        if position:
            out.add_(term)
    return out


def weighted_sum(tensors: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """Add up K weighted tensors of any shape; the result lies in the first."""
    total = flat(tensors[0])
    scratch = torch.empty(BLOCK, dtype=total.dtype)
    for parts in blocks_of([total, *map(flat, tensors[1:])]):
        accumulate(parts, weights, out=parts[0], term=scratch[: len(parts[0])])
    return total.view(tensors[0].shape)


def sum_to_divide_by(weights: Sequence[float], option: str) -> float:
    """The sum of the weights.

    Raises:
        RecipeError: it is zero to rounding; the message names the option that asks for the
            division.
    """
    total = exact_sum(weights)
    if cancel(weights):
        raise RecipeError(
            f"the weights sum to {total:g} - they are divided by their sum - give others, or set "
            f"{option} to false"
        )
    return total
