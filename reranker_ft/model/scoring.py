"""Score pairs as token ids, in micro-batches of about equal length.

Training, evaluation, scoring and mining all run a cross-encoder through this module.
"""

from __future__ import annotations

import inspect
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from reranker_ft.errors import ModelError
from reranker_ft.model.forward import (
    attention_without_plans,
    computes_beginnings_once,
    forward_logits,
    shared_batches,
)
from reranker_ft.model.pairs import Encodings
from reranker_ft.progress import progress_bar

# Below this the call overhead of a layer shows; above it the activations leave the CPU's cache.
CPU_MICRO_BATCH_TOKENS = 1024
# In training they leave it anyway, to be kept for the backward.
CPU_TRAINING_TOKENS = 2048
GPU_MICRO_BATCH_TOKENS = 16384


def default_micro_batch_tokens(device: torch.device | str, *, training: bool = False) -> int:
    """Return how many padded tokens one forward takes where the caller does not say."""
    if torch.device(device).type != "cpu":
        return GPU_MICRO_BATCH_TOKENS
    return CPU_TRAINING_TOKENS if training else CPU_MICRO_BATCH_TOKENS


def position_limit(model: nn.Module) -> int | None:
    """Return how many tokens the model has positions for; ``None`` if no limit is known.

    The RoBERTa family counts positions from ``padding_idx + 1``, so its table of 514 rows serves
    512 tokens.
    """
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            unused = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - unused
    limit = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    return int(limit) if limit else None


def token_batches(lengths: Sequence[int] | npt.NDArray[Any], max_tokens: int) -> list[list[int]]:
    """Return 0..N-1 in micro-batches of at most ``max_tokens`` padded tokens, longest first.

    A pair that is longer than ``max_tokens`` makes a micro-batch of its own. Longest first, so that
    a batch that does not fit into memory fails at once.
    """
    lengths = np.asarray(lengths)
    by_length = np.argsort(-lengths, kind="stable")
    batches: list[list[int]] = []
    start = 0
    while start < len(by_length):
        rows = max(1, max_tokens // max(1, int(lengths[by_length[start]])))
        batches.append(by_length[start : start + rows].tolist())
        start += rows
    return batches


def micro_batches(encodings: Encodings, max_tokens: int, *, shared: bool) -> list[list[int]]:
    """Return 0..N-1 in micro-batches of at most ``max_tokens`` tokens.

    Args:
        shared: Put pairs that begin alike together, and count their beginning once: for models
            that ``computes_beginnings_once`` names. Else by length, padding counted.
    """
    if not shared:
        return token_batches(encodings.lengths, max_tokens)
    return shared_batches([encodings.ids(pair) for pair in range(len(encodings))], max_tokens)


def needs_mask(model: nn.Module) -> bool:
    """Whether the model must be given an attention mask even where it would be all ones."""
    parameter = inspect.signature(model.forward).parameters.get("attention_mask")
    return parameter is None or parameter.default is not None


@attention_without_plans()
@torch.no_grad()
def score_encodings(
    model: nn.Module,
    encodings: Encodings,
    *,
    max_tokens: int | None = None,
    progress: bool | str = False,
    stop: threading.Event | None = None,
) -> Tensor:
    """Run a cross-encoder over all pairs, without gradients.

    Where memory runs out, the budget is halved and the pairs that are still missing are batched
    anew; those that have a score keep it. Runs the model in the mode (train or eval), dtype and on
    the device that it has.

    Args:
        model: A sequence classification model with one label.
        encodings: N pairs.
        max_tokens: Maximum padded tokens per forward pass; ``None`` lets the device decide.
        progress: Show a progress bar; a string is its label.
        stop: Set by another thread that has no use for the scores any more.

    Returns:
        (N,) fp32 raw scores (logits) on the CPU, in the order of ``encodings``.

    Raises:
        ModelError: The model does not give one logit per pair, or a single pair does not fit into
            memory.
        InterruptedError: ``stop`` was set.
    """
    device = next(model.parameters()).device
    budget = max_tokens or default_micro_batch_tokens(device)
    always_mask = needs_mask(model)
    lengths = encodings.lengths
    results: list[tuple[list[int], Tensor]] = []
    shared = computes_beginnings_once(model)
    batches = deque(micro_batches(encodings, budget, shared=shared))
    label = progress if isinstance(progress, str) else "scoring"
    with progress_bar(len(encodings), label, unit="pairs", shown=bool(progress)) as bar:
        while batches:
            if stop is not None and stop.is_set():
                raise InterruptedError("the scores are not wanted any more")
            pairs = batches.popleft()
            inputs = encodings.pad(pairs, always_mask=always_mask)
            try:
                logits = forward_logits(model, to_device(inputs, device))
            except torch.cuda.OutOfMemoryError:
                if len(pairs) == 1:
                    raise ModelError(
                        f"one pair of {lengths[pairs[0]]} tokens does not fit into the memory of "
                        f"{device} - a pair is never split - use a smaller max_length"
                    ) from None
                budget = inputs["input_ids"].numel() // 2
                rest = np.concatenate([pairs, *batches]).astype(np.int64)
                batches = deque(rest[b].tolist() for b in token_batches(lengths[rest], budget))
                continue
            # Not copied to the CPU here: that would wait for the device in every micro-batch.
            results.append((pairs, logits))
            bar.update(len(pairs))
    scores = torch.empty(len(encodings), dtype=torch.float32)
    for pairs, logits in results:
        scores[pairs] = logits.cpu()
    return scores


def to_device(inputs: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Return model inputs, moved."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in inputs.items()}
