"""Dropout on a CPU, with masks drawn sixteen bits an element.

torch draws a CPU's dropout masks one Bernoulli number at a time in one thread, and attention with
dropout has no fused kernel there: together a quarter of a training step of a small model. Here
four elements share one draw of 64 bits, masks are kept as bytes, and attention keeps nothing but
its probabilities and the mask for the backward.

The probability is rounded to a multiple of 2^-16, and what is kept is scaled by the rounded one, so
that the expectation stays exact. Each mask's stream is seeded from torch's own generator: what
seeds and restores that one seeds and restores the masks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

_STEPS = 1 << 16


class DropoutInBits(TorchFunctionMode):
    """Inside, training dropout and attention with dropout on the CPU go through this module."""

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
            result = _dropped(*args, **kwargs)
        elif func is scaled_dot_product_attention:
            result = _dropped_attention(*args, **kwargs)
        return func(*args, **kwargs) if result is None else result


def dropout_in_bits(model: nn.Module) -> AbstractContextManager[object]:
    """A context for the forwards of a model that is being trained.

    Nothing changes with gradient checkpointing, whose backward draws the masks again outside.
    """
    checkpointed = any(getattr(each, "gradient_checkpointing", False) for each in model.modules())
    return DropoutInBits() if model.training and not checkpointed else nullcontext()


def _dropped(
    states: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor | None:
    if not training or inplace or not _fits(states, p):
        return None
    kept, factor = _mask(states.shape, p)
    result: Tensor = _Dropout.apply(states, kept, factor)  # type: ignore[no-untyped-call]
    return result


def _dropped_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor | None:
    unusual = is_causal or enable_gqa or query.ndim != 4
    learned = attn_mask is not None and attn_mask.requires_grad
    if unusual or learned or not _fits(query, dropout_p):
        return None
    kept, factor = _mask((*query.shape[:-1], key.shape[-2]), dropout_p)
    scaling = query.shape[-1] ** -0.5 if scale is None else scale
    inputs = (query, key, value, attn_mask, kept, factor, scaling)
    result: Tensor = _Attention.apply(*inputs)  # type: ignore[no-untyped-call]
    return result


def _fits(states: Tensor, p: float) -> bool:
    return states.device.type == "cpu" and states.dtype == torch.float32 and 0 < p < 1


def _mask(shape: Iterable[int], p: float) -> tuple[Tensor, float]:
    """Bytes of 0 or 1, and what the kept elements are multiplied by."""
    shape = tuple(shape)
    count = int(np.prod(shape))
    seed = int(torch.randint(1 << 62, ()))
    words = np.random.SFC64(seed).random_raw(-(-count // 4))
    dropped = min(max(round(p * _STEPS), 1), _STEPS - 1)
    # NumPy compares whole registers of such short numbers; torch takes five times as long.
    kept = words.view(np.int16)[:count] >= dropped - _STEPS // 2
    return torch.from_numpy(kept.view(np.uint8)).view(shape), _STEPS / (_STEPS - dropped)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, kept: Tensor, factor: float) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.factor = factor
        return (states * kept).mul_(factor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (kept,) = ctx.saved_tensors
        return (gradient * kept).mul_(ctx.factor), None, None


class _Attention(torch.autograd.Function):
    """softmax(scaling q k^T + mask), dropped out, times v; shapes (B, heads, L, d)."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        kept: Tensor,
        factor: float,
        scaling: float,
    ) -> Tensor:
        logits = (query * scaling) @ key.transpose(-1, -2)
        if mask is not None and mask.dtype == torch.bool:
            logits.masked_fill_(~mask, -torch.inf)
        elif mask is not None:
            logits += mask
        chances = logits.softmax(-1)
        ctx.save_for_backward(query, key, value, chances, kept)
        ctx.factors = (factor, scaling)
        return ((chances * kept) @ value).mul_(factor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, chances, kept = ctx.saved_tensors
        factor, scaling = ctx.factors
        gradient = gradient * factor
        to_value = (chances * kept).transpose(-1, -2) @ gradient
        to_chances = (gradient @ value.transpose(-1, -2)).mul_(kept)
        to_logits = torch._softmax_backward_data(to_chances, chances, -1, chances.dtype)
        to_logits.mul_(scaling)
        return (to_logits @ key, to_logits.transpose(-1, -2) @ query, to_value, *[None] * 4)
