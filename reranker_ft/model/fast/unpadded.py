"""The layers of a cross-encoder without padding: the tokens of a micro-batch in a single row.

All that a BERT-like layer does but attention looks at one position at a time. So the sequences of a
micro-batch go through it end to end, (1, T, h) for the T tokens that there are, and attention takes
them apart again, equally long neighbours together. No position is computed that holds padding, no
mask is made, and what attention works on stays in the CPU's cache. Scores and gradients are the
same. A GPU would wait for the many small calls: there micro-batches stay padded.

Attention registered by name, as in ``packed.py``, gives the same row without a method replaced, but
cannot leave out the positions of the last layer that nobody reads: six layers of MiniLM's size took
a fifth more time with it on a CPU.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from reranker_ft.model.fast.dropout import FastDropout, suits
from reranker_ft.model.fast.dropped_attention import Lengths, attention_with_dropout
from reranker_ft.model.fast.first_token import attend, heads_of


@dataclass(frozen=True)
class Row:
    """Where B sequences of a padded micro-batch (B, L) stand, end to end, in one row of T tokens.

    Attributes:
        kept: (T,) places of the tokens in the flattened micro-batch.
        starts: (B,) where each sequence begins in the row.
        runs: How many neighbours have the same length, and which.
    """

    kept: Tensor
    starts: Tensor
    runs: list[tuple[int, int]]

    @classmethod
    def of(cls, inputs: dict[str, Tensor]) -> Row | None:
        """Return ``None`` unless all sequences are on a CPU and begin with a token."""
        ids = inputs["input_ids"]
        mask = inputs.get("attention_mask")
        if ids.device.type != "cpu" or (mask is not None and not mask[:, 0].all()):
            return None
        present = torch.ones_like(ids) if mask is None else mask
        lengths = present.sum(1)
        runs = [(len(list(run)), length) for length, run in itertools.groupby(lengths.tolist())]
        return cls(present.flatten().nonzero()[:, 0], lengths.cumsum(0) - lengths, runs)

    def pack(self, padded: Tensor) -> Tensor:
        """Return (B, L, h) -> (1, T, h)."""
        return padded.flatten(0, 1)[None, self.kept]


@contextmanager
def unpadded(layers: list[Any], row: Row, dropout: FastDropout | None) -> Iterator[None]:
    """Inside, compute these layers at the tokens of ``row``, the last at the first of each.

    The layers take the padded hidden states (B, L, h), and give (B, 1, h).

    Args:
        layers: See ``layers_below_first_token``.
        dropout: What drops out probabilities of attention; ``None`` leaves it to torch.
    """
    for number, layer in enumerate(layers):
        layer.attention.forward = partial(
            _attention_in_row,
            layer.attention,
            row,
            dropout,
            is_first=number == 0,
            is_last=number == len(layers) - 1,
        )
    gelus = [] if torch.is_grad_enabled() else _exact_gelus(layers)
    for gelu in gelus:
        # What goes in is nobody else's, and a second tensor as large would leave the cache.
        gelu.forward = torch.ops.aten.gelu_
    try:
        yield
    finally:
        for layer in layers:
            del layer.attention.forward
        for gelu in gelus:
            del gelu.forward


def _exact_gelus(layers: list[Any]) -> list[Any]:
    return [layer.intermediate.intermediate_act_fn for layer in layers if has_exact_gelu(layer)]


def has_exact_gelu(layer: Any) -> bool:
    """Whether a BERT-like layer's activation is GELU by the error function."""
    return getattr(layer.intermediate.intermediate_act_fn, "act", None) is functional.gelu


def _attention_in_row(
    attention: Any,
    row: Row,
    dropout: FastDropout | None,
    hidden: Tensor,
    *_: Any,
    is_first: bool,
    is_last: bool,
    **__: Any,
) -> tuple[Tensor, None]:
    """Return the attention block: (1, T, h) -> (1, T, h), or (B, 1, h) in the last layer."""
    hidden = row.pack(hidden) if is_first else hidden
    asking = hidden[:, row.starts] if is_last else hidden
    asking_runs = [(count, 1) for count, _ in row.runs] if is_last else row.runs
    runs = list(zip(asking_runs, row.runs, strict=True))
    query, key, value = (each[0] for each in heads_of(attention, asking, hidden))
    p = attention.self.dropout.p
    if dropout and attention.self.training and suits(query, p):
        lengths = [Lengths(asks, asked) for (n, asks), (_, asked) in runs for _ in range(n)]
        mixed = attention_with_dropout(query, key, value, lengths, dropout.masks, p=p).flatten(1)
    else:
        parts = (cut(query, asking_runs), cut(key, row.runs), cut(value, row.runs))
        mixed = torch.cat(
            [attend(attention, *part).flatten(0, 1) for part in zip(*parts, strict=True)]
        )
    states: Tensor = attention.output(mixed[None], asking)
    return states.transpose(0, 1) if is_last else states, None


def cut(row: Tensor, runs: list[tuple[int, int]]) -> list[Tensor]:
    """Return (T, ...) -> a tensor (n, L, ...) for each run of n sequences of L tokens."""
    parts = torch.split(row, [count * length for count, length in runs])
    return [part.reshape(*run, *part.shape[1:]) for part, run in zip(parts, runs, strict=True)]
