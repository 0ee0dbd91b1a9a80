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
def last_layer_at_first_token(layers: list[Any]) -> Iterator[None]:
    """Inside, compute the last of these layers at the first position alone.

    Args:
        layers: See ``layers_below_first_token``.
    """
    attention = layers[-1].attention
    whole = attention.forward

    def at_first(hidden: Tensor, attention_mask: Tensor | None = None, **others: Any) -> Any:
        if attention_mask is not None and attention_mask.ndim != 4:
            return whole(hidden, attention_mask, **others)  # kernels for unpadded sequences
        mask = None if attention_mask is None else attention_mask[:, :, :1]
        first = hidden[:, :1]
        query, key, value = heads_of(attention, first, hidden)
        return attention.output(attend(attention, query, key, value, mask), first), None

    attention.forward = at_first
    try:
        yield
    finally:
        del attention.forward


def heads_of(attention: Any, asking: Tensor, asked: Tensor) -> list[Tensor]:
    """Return queries of ``asking`` and keys and values of ``asked``, (.., h) to (.., heads, d)."""
    own = attention.self
    states = (own.query(asking), own.key(asked), own.value(asked))
    return [each.unflatten(-1, (own.num_attention_heads, -1)) for each in states]


def attend(
    attention: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Return (B, L, h) what L positions of B sequences gather from K positions.

    Args:
        query: (B, L, heads, d); ``key`` and ``value`` are (B, K, heads, d).
        mask: (B or 1, 1, L, K), boolean or added to the logits.
    """
    own = attention.self
    dropped = own.dropout.p if own.training else 0.0
    query, key, value = (each.transpose(1, 2) for each in (query, key, value))
    mixed = scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropped)
    return mixed.transpose(1, 2).flatten(2)


def layers_below_first_token(model: nn.Module) -> list[Any] | None:
    """Return the layers of a classifier that is known to read its first position; else ``None``.

    ``None`` too where the layers may not be told which positions to compute: with gradient
    checkpointing, which runs them again outside, and where hooks watch them.
    """
    classifier = classifier_at_first_token(model)
    if classifier is None:
        return None
    config: Any = classifier.config
    layers: Any = classifier.base_model.encoder.layer
    usual = (
        not config.is_decoder
        and not config.chunk_size_feed_forward
        and getattr(config, "position_embedding_type", None) in (None, "absolute")
        and config._attn_implementation in ("eager", "sdpa")
    )
    checkpointed = layers.training and any(
        getattr(layer, "gradient_checkpointing", False) for layer in layers
    )
    watched = any(each._forward_hooks or each._forward_pre_hooks for each in layers.modules())
    return list(layers) if usual and not checkpointed and not watched else None


def classifier_at_first_token(model: nn.Module) -> Any | None:
    """The model, or the one inside it, whose head is known to read the first position."""
    return next((m for m in model.modules() if _reads_first_token(type(m))), None)


def _reads_first_token(module: type) -> bool:
    # Code that came with a checkpoint may bear the same class name over other layers.
    return module.__name__ in HEADS_OF_FIRST_TOKEN and module.__module__.startswith("transformers.")
