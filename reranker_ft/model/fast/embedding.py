"""The word embeddings of a training step, looked up once for all of its micro-batches.

The gradient of a lookup is as large as the vocabulary: for every forward autograd fills such a
table with zeros, writes the few rows that the forward used, and adds the tables up. After one
lookup for the whole step there is one table. Scores are the same, gradients too but for the order
of sums.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel


@contextmanager
def looked_up_once(model: nn.Module, micro_batches: Sequence[dict[str, Tensor]]) -> Iterator[None]:
    """Inside, forward passes of these micro-batches share one lookup of word embeddings.

    Nothing changes where embeddings are not trained, are split between processes (FSDP, DeepSpeed),
    or are more than a lookup.

    Args:
        micro_batches: Model inputs with ``input_ids`` (B, L).
    """
    embedding = _trained_embedding(model)
    if embedding is None or len(micro_batches) < 2:
        yield
        return
    ids = [inputs["input_ids"] for inputs in micro_batches]
    vectors = embedding(torch.cat([each.flatten() for each in ids]))
    parts = vectors.split([each.numel() for each in ids])
    # By address: a wrapper may hand the model another tensor object with the same data.
    known = {each.data_ptr(): (each.shape, part) for each, part in zip(ids, parts, strict=True)}
    look_up = embedding.forward

    def looked_up(input_ids: Tensor) -> Tensor:
        shape, part = known.get(input_ids.data_ptr(), (None, vectors))
        return part.view(*input_ids.shape, -1) if shape == input_ids.shape else look_up(input_ids)

    embedding.forward = looked_up  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        del embedding.forward


def _trained_embedding(model: nn.Module) -> nn.Embedding | None:
    """Return the word embeddings if this process trains all of them by plain lookups."""
    own = model.module if isinstance(model, DistributedDataParallel) else model
    if not isinstance(own, PreTrainedModel) or not torch.is_grad_enabled():
        return None
    embedding = own.get_input_embeddings()
    plain = (
        type(embedding) is nn.Embedding
        and type(embedding.weight) is nn.Parameter
        and embedding.weight.requires_grad
        and not (embedding.sparse or embedding.scale_grad_by_freq or embedding.max_norm)
        and not (embedding._forward_hooks or embedding._forward_pre_hooks)
    )
    return embedding if plain else None
