"""Kernels of a GPU that attend within each of many sequences of a row, all in one call.

Query, key and value are rows of tokens, (T, heads, d) and (S, fewer heads or as many, d). Sequence
i asks from ``asking_bounds[i]`` and is asked from ``asked_bounds[i]`` on. It may be asked about
more tokens than it asks: the last of both stand at the same place, and a token asks none behind it.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

_WIDEST = 256  # of a head
_OLDEST = (8, 0)  # generation of GPUs
# Half precision rounds to three digits; a token more or less changes the first.
_TOLERANCE = 0.1


class Bounds(NamedTuple):
    """Where N sequences stand in the rows of queries and of keys.

    Attributes:
        asking: (N + 1,) int32, from 0 to T.
        asked: (N + 1,) int32, from 0 to S.
        longest_asking, longest_asked: Tokens of the longest sequence.
    """

    asking: Tensor
    asked: Tensor
    longest_asking: int
    longest_asked: int

    @classmethod
    def of(cls, asking: Sequence[int], asked: Sequence[int], device: torch.device) -> Bounds:
        """Return those of sequences of these lengths."""
        asking_ends, asked_ends = (
            torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)
            for lengths in (asking, asked)
        )
        return cls(asking_ends, asked_ends, max(asking), max(asked))


Kernel: TypeAlias = Callable[[Tensor, Tensor, Tensor, Bounds, float | None], Tensor]
"""Query, key, value, bounds and the scale of the logits to (T, heads, d)."""


def gpu_kernel(model: Any) -> Kernel | None:
    """Return what a language model's packed row is attended by on a GPU; ``None``: stay padded.

    For scoring in half precision. What is returned has agreed with torch's ordinary attention on
    this device, for heads like the model's.

    Args:
        model: That of transformers itself, without wrappers.
    """
    config: Any = model.config
    device = model.device
    if (
        device.type != "cuda"
        or model.training
        or model.dtype not in (torch.float16, torch.bfloat16)
        or torch.is_autocast_enabled(device.type)
    ):
        return None
    if any(parameter.device != device for parameter in model.parameters()):
        return None
    widths = {getattr(module, "head_dim", None) for module in model.modules()} - {None}
    heads = getattr(config, "num_attention_heads", None)
    asked_heads = getattr(config, "num_key_value_heads", None) or heads
    counts = (heads, asked_heads, *widths)
    if not all(isinstance(count, int) for count in counts) or len(widths) != 1:
        return None
    if getattr(config, "v_head_dim", None) is not None:
        return None
    return _kernel_of(device, model.dtype, *counts)


@cache
def _kernel_of(
    device: torch.device, dtype: torch.dtype, heads: int, asked_heads: int, width: int
) -> Kernel | None:
    if torch.version.cuda is None or torch.cuda.get_device_capability(device) < _OLDEST:
        return None
    if width % 8 or width > _WIDEST or heads % asked_heads:
        return None
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(tokens, count, width, generator=generator).to(device, dtype)
        for tokens, count in ((12, heads), (22, asked_heads), (22, asked_heads))
    )
    found = (each for each in _kernels() if agrees(each, query, key, value))
    return next(found, None)


def _kernels() -> Iterator[Kernel]:
    """Yield the kernels that are installed: flash-attn's, then torch's own."""
    if importlib.util.find_spec("flash_attn") is not None:
        yield _by_flash_attn
    if importlib.util.find_spec("torch.nn.attention.varlen") is not None:
        from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415 - newer than our oldest

        # Older ones know neither of these.
        if {"window_size", "enable_gqa"} <= set(inspect.signature(varlen_attn).parameters):
            yield _by_torch


def _by_flash_attn(
    query: Tensor, key: Tensor, value: Tensor, bounds: Bounds, scale: float | None
) -> Tensor:
    from flash_attn import flash_attn_varlen_func  # noqa: PLC0415 - optional

    found: Tensor = flash_attn_varlen_func(
        query, key, value, *bounds, softmax_scale=scale, causal=True
    )
    return found


def _by_torch(
    query: Tensor, key: Tensor, value: Tensor, bounds: Bounds, scale: float | None
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415 - newer than our oldest

    found: Any = varlen_attn(
        query,
        key,
        value,
        *bounds,
        scale=scale,
        window_size=(-1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return found  # type: ignore[no-any-return]


@torch.no_grad()
def agrees(kernel: Kernel, query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether a kernel runs here, and gathers what torch's ordinary attention gathers.

    Args:
        query: (12, heads, d), of sequences of 5, 3 and 4 tokens; ``key`` and ``value`` are (22, ..)
            for 5, 8 and 9 tokens.
    """
    bounds = Bounds.of([5, 3, 4], [5, 8, 9], query.device)
    try:
        found = kernel(query, key, value, bounds, 0.3)
        expected = attention_by_sequence(query, key, value, bounds, 0.3)
        return found.shape == expected.shape and bool(
            (found.float() - expected).abs().max() < _TOLERANCE
        )
    except (RuntimeError, ImportError, TypeError, ValueError):
        return False  # of a GPU or a version that it is not made for


def attention_by_sequence(
    query: Tensor, key: Tensor, value: Tensor, bounds: Bounds, scale: float | None
) -> Tensor:
    """Return in fp32 what a kernel gathers, one sequence after the other."""
    pairs = zip(pairwise(bounds.asking.tolist()), pairwise(bounds.asked.tolist()), strict=True)
    mixed = []
    for (first, last), (first_asked, last_asked) in pairs:
        length, asked = last - first, last_asked - first_asked
        may = torch.ones(length, asked, dtype=torch.bool, device=query.device)
        found = scaled_dot_product_attention(
            query[first:last].transpose(0, 1).float()[None],
            key[first_asked:last_asked].transpose(0, 1).float()[None],
            value[first_asked:last_asked].transpose(0, 1).float()[None],
            attn_mask=may.tril(asked - length),
            scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        mixed.append(found[0].transpose(0, 1))
    return torch.cat(mixed)
