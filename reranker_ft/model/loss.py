"""Losses of (Q, C) scores: one row per query, the positive in column 0.

All are pure functions and return (Q,), one loss per query, so that the caller can weigh and
average. ``present`` (Q, C) is False at empty places; ``None`` means that there are no empty places.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own abbreviation

GroupLoss = Callable[[Tensor, Tensor | None], Tensor]


def softmax_cross_entropy(scores: Tensor, present: Tensor | None = None) -> Tensor:
    """Return the (Q,) -log softmax(scores)[:, 0]: the positive against all passages of its row.

    The localized contrastive estimation loss of Gao et al., "Rethink Training of BERT Rerankers in
    Multi-Stage Retrieval Pipeline" (2021), equation 3.
    """
    if present is not None:
        scores = scores.masked_fill(~present, float("-inf"))
    return scores.logsumexp(dim=1) - scores[:, 0]


def binary_cross_entropy(scores: Tensor, present: Tensor | None = None) -> Tensor:
    """Return the (Q,) mean logistic loss of each row, label 1 in column 0 and 0 elsewhere."""
    labels = torch.zeros_like(scores)
    labels[:, 0] = 1
    losses = F.binary_cross_entropy_with_logits(scores, labels, reduction="none")  # (Q, C)
    if present is None:
        return losses.mean(dim=1)
    return (losses * present).sum(dim=1) / present.sum(dim=1)


def distillation(scores: Tensor, teacher_scores: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the (Q,) T^2 KL(softmax(teacher / T) || softmax(scores / T)).

    Hinton et al., "Distilling the Knowledge in a Neural Network" (2015), section 2; T^2 keeps the
    size of the gradient independent of T.
    """
    student = (scores / temperature).log_softmax(dim=1)  # (Q, C)
    teacher = (teacher_scores / temperature).log_softmax(dim=1)
    divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=1)
    return temperature**2 * divergence


def towards_last_layer(scores: Tensor, present: Tensor | None = None) -> Tensor:
    """Return the (Q,) sum over the layers before the last of their distillation by the last.

    A layerwise reranker learns so in FlagEmbedding 1.4 where there is no other teacher.

    Args:
        scores: (K, Q, C) of K layers.
    """
    if present is not None:
        scores = scores.masked_fill(~present, -1e4)  # a share of nothing, and no infinities
    teacher = scores[-1].detach()
    losses = scores.new_zeros(scores.shape[1])
    for each in scores[:-1]:
        losses = losses + distillation(each, teacher)
    return losses


LOSSES: dict[str, GroupLoss] = {
    "softmax": softmax_cross_entropy,
    "bce": binary_cross_entropy,
}
