"""Methods that add up what fine-tunes changed: thin out, elect signs, combine.

With delta_i = theta_i - theta_base, a method thins out every delta, weighs it, drops the elements
whose sign lost the vote, adds up the rest, may divide by the participating weights, scales by
lambda, and adds the base.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from cocktail.methods.blocks import blocks_of, flat
from cocktail.methods.election import ElectedSum, WeightedSum
from cocktail.methods.random_words import RandomWords
from cocktail.methods.sparsify import (
    drop_at_random,
    drop_by_rank,
    keep_largest,
    keep_middle,
    magnitude_sum,
)

Sparsifier = Callable[[torch.Tensor, int], None]
"""Called with a model's delta, to be changed in place, and the model's position."""
Tensors = Sequence[torch.Tensor]
Numbers = Sequence[float]

_TINY = 1e-7  # sums of magnitudes below it are not scaled, as in mergekit


def task_arithmetic(
    tensors: Tensors, base: torch.Tensor, weights: Numbers, **options: Any
) -> torch.Tensor:
    """Adds to the base the weighted differences from it.

    theta = theta_base + lambda sum_i w_i (theta_i - theta_base); with ``normalize`` the sum is
    divided by sum_i w_i. https://arxiv.org/abs/2212.04089
    """
    return _merge(tensors, base, weights, None, **options)


def ties(
    tensors: Tensors, base: torch.Tensor, weights: Numbers, *, density: Numbers, **options: Any
) -> torch.Tensor:
    """Keeps each model's largest differences, elects a sign per element, averages those that agree.

    Trim: of every delta, the share ``density`` with the largest magnitudes stays. Elect: the sign
    of sum_i w_i delta_i, plus where that is zero. Merge: theta = theta_base + lambda
    sum_A w_i delta_i / sum_A w_i, where A is the models whose weighted delta has that sign; without
    ``normalize``, the sum is not divided. https://arxiv.org/abs/2306.01708
    """

    def sparsify(delta: torch.Tensor, model: int) -> None:
        keep_largest(flat(delta), density[model])

    return _merge(tensors, base, weights, sparsify, elect=True, **options)


def dare_linear(
    tensors: Tensors, base: torch.Tensor, weights: Numbers, **options: Any
) -> torch.Tensor:
    """Drops differences at random, scales the rest up, adds them.

    theta = theta_base + lambda sum_i w_i m_i delta_i / density_i, where every element of m_i is one
    with probability density_i and zero otherwise; without ``rescale``, the density does not divide.
    https://arxiv.org/abs/2311.03099
    """
    return _dare(tensors, base, weights, elect=False, **options)


def dare_ties(
    tensors: Tensors, base: torch.Tensor, weights: Numbers, **options: Any
) -> torch.Tensor:
    """Drops differences at random, scales the rest up, adds those of the elected sign.

    The deltas of ``dare_linear``, elected and merged as in ``ties``.
    https://arxiv.org/abs/2311.03099, https://arxiv.org/abs/2306.01708
    """
    return _dare(tensors, base, weights, elect=True, **options)


def della_linear(
    tensors: Tensors, base: torch.Tensor, weights: Numbers, **options: Any
) -> torch.Tensor:
    """Drops differences at random, small ones more often, scales the rest up, adds them.

    An element whose magnitude has rank r of n in its row (from 0) stays with probability
    density - epsilon + 2 epsilon r / (n - 1). With ``rescale``, what stays of every delta is scaled
    to the delta's former sum of magnitudes. A row is everything with the same first index; a tensor
    of one dimension is one row. https://arxiv.org/abs/2406.11617
    """
    return _della(tensors, base, weights, elect=False, **options)


def della(tensors: Tensors, base: torch.Tensor, weights: Numbers, **options: Any) -> torch.Tensor:
    """Drops differences at random, small ones more often, averages those of the elected sign.

    The deltas of ``della_linear``, elected and merged as in ``ties``.
    https://arxiv.org/abs/2406.11617
    """
    return _della(tensors, base, weights, elect=True, **options)


def breadcrumbs(
    tensors: Tensors, base: torch.Tensor, weights: Numbers, **options: Any
) -> torch.Tensor:
    """Drops the largest and the smallest differences, adds the rest.

    Of every delta, the share gamma with the largest magnitudes is dropped, then as many of the
    smallest as leave the share density; theta = theta_base + lambda sum_i w_i delta_i.
    https://arxiv.org/abs/2312.06795
    """
    return _breadcrumbs(tensors, base, weights, elect=False, **options)


def breadcrumbs_ties(
    tensors: Tensors, base: torch.Tensor, weights: Numbers, **options: Any
) -> torch.Tensor:
    """Drops the largest and the smallest differences, adds those of the elected sign.

    The deltas of ``breadcrumbs``, elected and merged as in ``ties``.
    https://arxiv.org/abs/2312.06795, https://arxiv.org/abs/2306.01708
    """
    return _breadcrumbs(tensors, base, weights, elect=True, **options)


def _dare(
    tensors: Tensors,
    base: torch.Tensor,
    weights: Numbers,
    *,
    generator: RandomWords,
    density: Numbers,
    rescale: bool,
    **options: Any,
) -> torch.Tensor:
    def sparsify(delta: torch.Tensor, model: int) -> None:
        drop_at_random(flat(delta), density[model], generator, model)
        if rescale and density[model] > 0:
            delta.div_(density[model])

    return _merge(tensors, base, weights, sparsify, rescale=False, **options)


def _della(
    tensors: Tensors,
    base: torch.Tensor,
    weights: Numbers,
    *,
    generator: RandomWords,
    density: Numbers,
    epsilon: Numbers,
    **options: Any,
) -> torch.Tensor:
    def sparsify(delta: torch.Tensor, model: int) -> None:
        rows = delta.flatten(1) if delta.dim() > 1 else delta.view(1, -1)
        drop_by_rank(rows, density[model], epsilon[model], generator, model)

    return _merge(tensors, base, weights, sparsify, **options)


def _breadcrumbs(
    tensors: Tensors,
    base: torch.Tensor,
    weights: Numbers,
    *,
    density: Numbers,
    gamma: Numbers,
    **options: Any,
) -> torch.Tensor:
    def sparsify(delta: torch.Tensor, model: int) -> None:
        keep_middle(flat(delta), density[model], gamma[model])

    return _merge(tensors, base, weights, sparsify, **options)


def _merge(
    tensors: Tensors,
    base: torch.Tensor,
    weights: Numbers,
    sparsify: Sparsifier | None,
    *,
    normalize: bool,
    lambda_: float,
    elect: bool = False,
    rescale: bool = False,
    **_: Any,
) -> torch.Tensor:
    """Run the three steps; the result lies in ``base``.

    Args:
        rescale: scale what is left of every delta to its former sum of magnitudes.
    """
    for model, delta in enumerate(tensors):
        delta.sub_(base)
        if sparsify is not None:
            before = magnitude_sum(flat(delta)) if rescale else 0.0
            sparsify(delta, model)
            after = magnitude_sum(flat(delta)) if rescale else 0.0
            if min(before, after) >= _TINY and before != after:
                delta.mul_(before / after)
    combine = (
        ElectedSum(weights, weights, base.dtype) if elect else WeightedSum(weights, base.dtype)
    )
    for block, *deltas in blocks_of([flat(base), *map(flat, tensors)]):
        change, divisor = combine(deltas)
        if normalize:
            # Where no model takes part, or the weights cancel, there is nothing to divide by.
            change.div_(torch.where(divisor.abs() < 1e-8, 1.0, divisor))
        if lambda_ != 1:
            change.mul_(lambda_)
        block.add_(change)
    return base
