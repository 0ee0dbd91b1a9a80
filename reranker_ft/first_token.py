"""The last layer of a cross-encoder, computed at the one position that its head reads.

A BERT-like classifier scores a pair by the last hidden state of the first token. The other
positions of the last layer feed nothing but their own residuals, so that only their keys and values
are needed: of the layer's 12 h^2 multiplications a token (h the hidden size), 10 h^2 fall away. The
scores and gradients are the same; a model of six layers saves a seventh of its work.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

HEADS_OF_FIRST_TOKEN = {
    "BertForSequenceClassification",
    "CamembertForSequenceClassification",
    "ElectraForSequenceClassification",
    "RobertaForSequenceClassification",
    "XLMRobertaForSequenceClassification",
}
"""Classes of transformers whose head reads position 0 of layers that are built like BERT's."""


@contextmanager
def last_layer_at_first_token(model: nn.Module) -> Iterator[None]:
    """Forwards inside compute the last layer at the first position alone, where that is exact.

    Nothing changes for other architectures, with gradient checkpointing (which runs the layer again
    outside), and where hooks watch the layer.
    """
    layer = _last_layer(model)
    if layer is None:
        yield
        return
    attention = layer.attention
    whole = attention.forward

    def at_first(hidden: Tensor, attention_mask: Tensor | None = None, **others: Any) -> Any:
        if attention_mask is not None and attention_mask.ndim != 4:
            return whole(hidden, attention_mask, **others)  # kernels for unpadded sequences
        return _attend_from_first(attention, hidden, attention_mask), None

    attention.forward = at_first
    try:
        yield
    finally:
        del attention.forward


def _attend_from_first(attention: Any, hidden: Tensor, mask: Tensor | None) -> Tensor:
    """(B, 1, h) what the attention block makes of the first of L positions.

    Args:
        hidden: (B, L, h).
        mask: (B or 1, 1, L, L), boolean or added to the logits.
    """
    own = attention.self
    first = hidden[:, :1]
    query, key, value = (
        states.unflatten(-1, (own.num_attention_heads, -1)).transpose(1, 2)
        for states in (own.query(first), own.key(hidden), own.value(hidden))
    )
    mixed = scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=None if mask is None else mask[:, :, :1],
        dropout_p=own.dropout.p if own.training else 0.0,
    )
    result: Tensor = attention.output(mixed.transpose(1, 2).flatten(2), first)
    return result


def _last_layer(model: nn.Module) -> Any:
    """The last layer of a classifier that is known to read its first position; else None."""
    classifier: Any = next((m for m in model.modules() if _reads_first_token(type(m))), None)
    if classifier is None:
        return None
    config: Any = classifier.config
    layer: Any = classifier.base_model.encoder.layer[-1]
    usual = (
        not config.is_decoder
        and not config.chunk_size_feed_forward
        and getattr(config, "position_embedding_type", None) in (None, "absolute")
        and config._attn_implementation in ("eager", "sdpa")
    )
    checkpointed = layer.training and getattr(layer, "gradient_checkpointing", False)
    watched = any(each._forward_hooks or each._forward_pre_hooks for each in layer.modules())
    return layer if usual and not checkpointed and not watched else None


def _reads_first_token(module: type) -> bool:
    # Code that came with a checkpoint may bear the same class name over other layers.
    return module.__name__ in HEADS_OF_FIRST_TOKEN and module.__module__.startswith("transformers.")
