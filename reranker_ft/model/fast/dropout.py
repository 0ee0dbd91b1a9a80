"""Dropout on a CPU without torch's slow masks, and attention without its slow fallback.

torch draws a CPU's dropout masks one Bernoulli number at a time in one thread, and attention with
dropout has no fused kernel there: together a quarter of a training step of a small model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from reranker_ft.model.fast.dropout_masks import MOST, DropoutMasks
from reranker_ft.model.fast.dropped_attention import Lengths, attention_with_dropout


class FastDropout(TorchFunctionMode):
    """Inside, training dropout and attention with dropout on the CPU go through this module.

    Attributes:
        masks: Where the masks come from.
    """

    def __init__(self) -> None:
        super().__init__()
        self.masks = DropoutMasks()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = None
        if func is dropout:
            result = self._dropped(*args, **kwargs)
        elif func is scaled_dot_product_attention:
            result = self._attention(*args, **kwargs)
        return func(*args, **kwargs) if result is None else result

    def _dropped(
        self, states: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor | None:
        if not training or inplace or not suits(states, p):
            return None
        kept = self.masks.draw(states.shape, p)
        result: Tensor = _Dropout.apply(states, kept, 1 / (1 - p))  # type: ignore[no-untyped-call]
        return result

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor | None:
        unusual = is_causal or enable_gqa or query.ndim != 4 or query.shape[:2] != key.shape[:2]
        learned = attn_mask is not None and (attn_mask.requires_grad or attn_mask.ndim != 4)
        if unusual or learned or not suits(query, dropout_p):
            return None
        count, _, length, _ = query.shape
        lengths = [Lengths(length, key.shape[2])] * count
        bias = None if attn_mask is None else attn_mask.expand(count, -1, -1, -1)
        row = attention_with_dropout(
            query.transpose(1, 2).flatten(0, 1),
            key.transpose(1, 2).flatten(0, 1),
            value.transpose(1, 2).flatten(0, 1),
            lengths,
            self.masks,
            p=dropout_p,
            scale=scale,
            bias=bias,
        )
        return row.view(count, length, *row.shape[1:]).transpose(1, 2)


def fast_dropout(model: nn.Module) -> AbstractContextManager[FastDropout | None]:
    """Return a context for the forwards of a model that is being trained.

    Nothing changes with gradient checkpointing, whose backward draws the masks again outside.
    """
    checkpointed = any(getattr(each, "gradient_checkpointing", False) for each in model.modules())
    return FastDropout() if model.training and not checkpointed else nullcontext()


def suits(states: Tensor, p: float) -> bool:
    """Whether dropout of these states is better done here."""
    known = states.dtype in (torch.float32, torch.bfloat16)
    return states.device.type == "cpu" and known and 0 < p <= MOST


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, kept: Tensor, factor: float) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.factor = factor
        return _masked(states, kept, factor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (kept,) = ctx.saved_tensors
        return _masked(gradient, kept, ctx.factor), None, None


def _masked(states: Tensor, kept: Tensor, factor: float) -> Tensor:
    # Byte times float would make a float copy of the bytes; this copies them into the result.
    return torch.empty_like(states).copy_(kept).mul_(states).mul_(factor)
