"""SCE: select what differs between the models, compute weights, erase minority signs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from cocktail.methods.blocks import BLOCK, blocks_of, flat
from cocktail.methods.election import ElectedSum
from cocktail.methods.gram import gram
from cocktail.methods.selection import keep_ranks


def sce(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor,
    weights: Sequence[float],
    *,
    select_topk: float,
    **_: Any,
) -> torch.Tensor:
    """Adds the differences that vary most between models and agree in sign, weighed by energy.

    Select: of the elements whose variance over the models is not zero, the share ``select_topk``
    with the largest. Compute: w_i = mean delta_i^2, divided by their sum (all equal if that is
    below 1e-6). Erase: A is the models that agree with the sign of sum_i delta_i.
    theta = theta_base + sum_A w_i delta_i / sum_A w_i. https://arxiv.org/abs/2408.07990
    """
    deltas = [flat(tensor.sub_(base)) for tensor in tensors]
    if select_topk < 1:
        _select(deltas, select_topk)
    energies = [
        float(gram([delta.view(1, -1)])[0, 0, 0]) / max(1, base.numel()) for delta in deltas
    ]
    total = sum(energies)
    count = len(tensors)
    shares = [1 / count] * count if total < 1e-6 else [energy / total for energy in energies]
    elected = ElectedSum(shares, [1.0] * count, base.dtype)
    for block, *parts in blocks_of([flat(base), *deltas]):
        change, divisor = elected(parts)
        block.add_(change.div_(divisor.clamp_(min=1e-6)))
    return base


def _select(deltas: Sequence[torch.Tensor], share: float) -> None:
    """Set to zero, in all deltas, the elements that vary least over the models."""
    variance = torch.empty_like(deltas[0])
    for out, *parts in blocks_of([variance, *deltas]):
        _variance(parts, out)
    # In fp32, as mergekit rounds it: 0.29 of 100 are 29 elements.
    kept = int(torch.count_nonzero(variance) * share)
    keep_ranks(variance, len(variance) - kept, len(variance))
    mask = torch.empty(BLOCK, dtype=variance.dtype)
    for varies, *parts in blocks_of([variance, *deltas]):
        selected = torch.ne(varies, 0.0, out=mask[: len(varies)])
        for part in parts:
            part.mul_(selected)


def _variance(parts: Sequence[torch.Tensor], out: torch.Tensor) -> None:
    """The variance over the models of each element, exactly zero where they are equal."""
    # Differences from the first model have an exact mean, zero, where the models are equal.
    shifts = [part - parts[0] for part in parts]
    mean = torch.zeros_like(out)
    for shift in shifts:
        mean.add_(shift)
    mean.div_(len(parts))
    out.zero_()
    for shift in shifts:
        out.add_(shift.sub_(mean).square_())
    out.div_(len(parts))
