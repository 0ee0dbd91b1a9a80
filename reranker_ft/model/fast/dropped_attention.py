"""Attention with dropout on a CPU, where torch has no kernel for both.

One sequence after the other, all heads at once, so that what is worked on stays in the cache.
Nothing but the probabilities and the bytes of the mask is kept for the backward.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reranker_ft.model.fast.dropout_masks import DropoutMasks


class Lengths(NamedTuple):
    """Of one sequence: its positions that ask, and those that are asked."""

    asking: int
    asked: int


def attention_with_dropout(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Sequence[Lengths],
    masks: DropoutMasks,
    *,
    p: float,
    scale: float | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Return what each position gathers from its own sequence, computed in fp32.

    Args:
        query: (T, heads, d), the asking positions of B sequences end to end.
        key: (S, heads, d), the asked ones; ``value`` is (S, heads, dv).
        lengths: Of the B sequences; they add up to T and S.
        p: The share of the probabilities that is dropped, at most ``dropout_masks.MOST``.
        scale: Of the logits; ``None`` is d^-0.5.
        bias: (B, 1 or heads, 1 or L, S_b) boolean (what may be asked), or added to the logits.

    Returns:
        (T, heads, dv).
    """
    if query.dtype != torch.float32:
        # Autocast would take the products to bf16 again, here and not in the backward.
        with torch.autocast("cpu", enabled=False):
            inputs_in_fp32 = (query.float(), key.float(), value.float(), lengths, masks)
            return attention_with_dropout(*inputs_in_fp32, p=p, scale=scale, bias=bias)
    heads = query.shape[1]
    kept = masks.draw([sum(heads * asking * asked for asking, asked in lengths)], p)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    inputs = (query, key, value, bias, kept, lengths, 1 / (1 - p), scale)
    result: Tensor = _Attention.apply(*inputs)  # type: ignore[no-untyped-call]
    return result


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        kept: Tensor,
        lengths: Sequence[Lengths],
        factor: float,
        scale: float,
    ) -> Tensor:
        query = query * scale
        chances = query.new_empty(len(kept))
        result = value.new_empty(len(query), *value.shape[1:])
        parts = zip(
            _asking([query, result], lengths),
            _asked([key, value], lengths),
            _tables([chances, kept], query.shape[1], lengths),
            strict=True,
        )
        for number, ((q, out), (k, v), (chance, keeps)) in enumerate(parts):
            logits = torch.bmm(q, k.mT)
            own = None if bias is None else bias[number]
            if own is not None:
                _restrict(logits, own)
            torch.softmax(logits, -1, out=chance)
            if own is not None:
                chance.masked_fill_(_asks_nobody(own), 0)
            out.copy_(torch.bmm(keeps.float().mul_(chance), v))
        ctx.save_for_backward(query, key, value, chances, kept)
        ctx.others = (lengths, factor, scale)
        return result.mul_(factor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, chances, kept = ctx.saved_tensors
        lengths, factor, scale = ctx.others
        to_query, to_key, to_value = map(torch.empty_like, (query, key, value))
        parts = zip(
            _asking([query, gradient * factor, to_query], lengths),
            _asked([key, value, to_key, to_value], lengths),
            _tables([chances, kept], query.shape[1], lengths),
            strict=True,
        )
        for (q, g, to_q), (k, v, to_k, to_v), (chance, keeps) in parts:
            mask = keeps.float()
            to_v.copy_(torch.bmm((mask * chance).mT, g))
            to_chance = torch.bmm(g, v.mT).mul_(mask)
            to_logits = torch._softmax_backward_data(to_chance, chance, -1, torch.float32)
            to_q.copy_(torch.bmm(to_logits, k))
            to_k.copy_(torch.bmm(to_logits.mT, q))
        return (to_query.mul_(scale), to_key, to_value, *[None] * 5)


def _restrict(logits: Tensor, bias: Tensor) -> None:
    if bias.dtype == torch.bool:
        logits.masked_fill_(~bias, -torch.inf)
    else:
        logits += bias


def _asks_nobody(bias: Tensor) -> Tensor:
    """Return (1 or heads, 1 or L, 1): positions that may ask none, whose softmax would be 0 / 0.

    ModernBERT has them: padding outside of every local window. They gather zeros, as in torch.
    """
    if bias.dtype == torch.bool:
        return ~bias.any(-1, keepdim=True)
    return (bias == -torch.inf).all(-1, keepdim=True)


def _asking(rows: Sequence[Tensor], lengths: Sequence[Lengths]) -> Iterator[tuple[Tensor, ...]]:
    """Of each sequence its part of each row: (T, heads, d) -> (heads, L, d)."""
    return _cut(rows, [each.asking for each in lengths])


def _asked(rows: Sequence[Tensor], lengths: Sequence[Lengths]) -> Iterator[tuple[Tensor, ...]]:
    return _cut(rows, [each.asked for each in lengths])


def _cut(rows: Sequence[Tensor], lengths: list[int]) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(torch.split(row.transpose(0, 1), lengths, 1) for row in rows), strict=True)


def _tables(
    flat: Sequence[Tensor], heads: int, lengths: Sequence[Lengths]
) -> Iterator[tuple[Tensor, ...]]:
    """Of each sequence its part of each flat tensor, as (heads, asking, asked)."""
    sizes = [heads * asking * asked for asking, asked in lengths]
    for parts in zip(lengths, *(torch.split(each, sizes) for each in flat), strict=True):
        yield tuple(part.view(heads, *parts[0]) for part in parts[1:])
