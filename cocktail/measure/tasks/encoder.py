"""Encoders: contrastive loss of a query's embedding against the passages' embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own abbreviation
from torch.nn.utils.rnn import pad_sequence

from cocktail.checkpoint.model import MAIN, Checkpoint
from cocktail.checkpoint.pooling import pooling_mode
from cocktail.errors import CheckpointError, RecipeError
from cocktail.measure.tasks.examples import RankedExample
from cocktail.measure.tasks.task import (
    Batch,
    by_length,
    length_limit,
    pad,
    pad_mask,
    softmax_slopes,
)
from cocktail.recipe.recipe import PoolingMode

TEMPERATURE = 0.05
"""The temperature that divides cosines in the loss, as in LM_Cocktail."""


class EncoderTask:
    """N queries and their passages; a row is the pooled vector (D,) of one text.

    The passages of all examples that are measured together are candidates for every query, like
    those of a batch in LM_Cocktail. A candidate that is also a positive of the query is left out.

    Args:
        pooling: ``cls``, ``mean``, ``max`` or ``lasttoken``.
        max_length: the most tokens of a text.
    """

    entangled = True
    scale_free = True
    metric = "ndcg@10"

    def __init__(
        self,
        examples: Sequence[RankedExample],
        tokenizer: Any,
        model: Any,
        *,
        pooling: str,
        max_length: int,
    ) -> None:
        self.places = [example.place for example in examples]
        self._examples = examples
        self._pooling = pooling
        limit = length_limit(max_length, tokenizer)
        texts: list[str] = []
        starts = [0]
        for example in examples:
            texts += [example.query, *example.passages]
            starts.append(len(texts))
        self._starts = np.array(starts)  # an example's query, then its passages
        self._ids = tokenizer(texts, truncation=True, max_length=limit)["input_ids"]
        self._pad = tokenizer.pad_token_id or 0
        self._layouts: dict[tuple[tuple[int, ...], ...], tuple[Tensor, ...]] = {}
        self.rows = len(texts)

    def batches(self, max_tokens: int, examples: Sequence[int] | None = None) -> list[Batch]:
        chosen = range(len(self.places)) if examples is None else examples
        rows = [row for i in chosen for row in range(self._starts[i], self._starts[i + 1])]
        made = []
        for batch in by_length([len(self._ids[row]) for row in rows], max_tokens):
            picked = [rows[place] for place in batch]
            ids = [self._ids[row] for row in picked]
            inputs = {"input_ids": pad(ids, self._pad), "attention_mask": pad_mask(ids)}
            owners = np.searchsorted(self._starts, picked, side="right") - 1
            made.append(Batch(inputs, torch.tensor(picked), frozenset(owners.tolist())))
        return made

    def forward(self, model: Any, batch: Batch) -> Tensor:
        """(B, D) pooled vectors, not normalised."""
        inputs = {name: tensor.to(model.device) for name, tensor in batch.inputs.items()}
        hidden = model(**inputs).last_hidden_state.float()  # (B, L, D)
        return pool(hidden, inputs["attention_mask"], self._pooling)

    keep = forward

    def scores(
        self, rows: Tensor, examples: Sequence[int], among: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(Q, C) cosines with all passages of these examples or of those in ``among``; the passages
        that do not compete; the positives' columns (Q,)."""
        queries, columns, left_out, targets = self._layout(
            tuple(examples), tuple(examples if among is None else among)
        )
        vectors = F.normalize(rows.double(), dim=-1)
        return vectors[queries] @ vectors[columns].T, left_out, targets

    def _layout(self, examples: tuple[int, ...], among: tuple[int, ...]) -> tuple[Tensor, ...]:
        """Rows of queries (Q,) and candidates (C,), those left out (Q, C), and targets (Q,)."""
        key = (examples, among)
        if key not in self._layouts:
            starts = self._starts[list(among)]
            counts = self._starts[np.array(among) + 1] - starts - 1
            columns = np.concatenate(
                [np.arange(s + 1, s + 1 + c) for s, c in zip(starts, counts, strict=True)]
            )
            firsts = dict(zip(among, np.cumsum([0, *counts[:-1]]).tolist(), strict=True))
            targets = torch.tensor([firsts[i] for i in examples])
            texts = [text for i in among for text in self._examples[i].passages]
            left_out = torch.tensor(
                [[text in self._examples[i].positives for text in texts] for i in examples]
            )
            left_out[torch.arange(len(targets)), targets] = False
            queries = torch.from_numpy(self._starts[list(examples)])
            self._layouts[key] = (queries, torch.from_numpy(columns), left_out, targets)
        return self._layouts[key]

    def losses(self, scores: tuple[Tensor, Tensor, Tensor], scale: Tensor) -> Tensor:
        cosines, left_out, targets = scores
        logits = (cosines * (scale / TEMPERATURE)).masked_fill(left_out, float("-inf"))
        return F.cross_entropy(logits, targets, reduction="none")

    def scale_slopes(
        self, scores: tuple[Tensor, Tensor, Tensor], scale: float
    ) -> tuple[float, float]:
        cosines, left_out, targets = scores
        return softmax_slopes(cosines / TEMPERATURE, left_out, targets, scale)

    def groups(self, rows: Tensor, examples: Sequence[int]) -> Tensor:
        """Cosines with a query's own passages or, if it has no negatives, with all positives."""
        vectors = F.normalize(rows.detach().double(), dim=-1)
        cosines = [vectors[self._starts[i]] @ vectors[self._ranked(i)].T for i in examples]
        return pad_sequence(cosines, batch_first=True, padding_value=float("-inf"))

    def _ranked(self, example: int) -> list[int]:
        """Rows of the passages that an example's query ranks, the positive first."""
        own = range(self._starts[example] + 1, self._starts[example + 1])
        if len(own) > 1:
            return list(own)
        known = self._examples[example].positives
        others = [
            int(start) + 1
            for start, other in zip(self._starts, self._examples, strict=False)
            if other.passages[0] not in known
        ]
        return [*own, *others]

    def batch_mean_loss(self, rows: Tensor, batch_size: int, order: Sequence[int]) -> float:
        """Every query against the passages of its batch: the mean over batches of their means."""
        means = []
        for start in range(0, len(order), batch_size):
            cosines, left_out, targets = self.scores(rows, order[start : start + batch_size])
            everything = (cosines, torch.zeros_like(left_out), targets)
            means.append(self.losses(everything, torch.ones(())).mean().item())
        return float(np.mean(means))


def pool(hidden: Tensor, mask: Tensor, mode: str) -> Tensor:
    """Pool each text into one vector.

    Args:
        hidden: (B, L, D) of the last layer, padded on the right.
        mask: (B, L) 1 for tokens, 0 for padding.
        mode: ``cls``, ``mean``, ``max`` or ``lasttoken``.

    Returns:
        (B, D)
    """
    if mode == "cls":
        return hidden[:, 0]
    if mode == "lasttoken":
        return hidden[torch.arange(len(hidden)), mask.sum(dim=1) - 1]
    tokens = mask[:, :, None].bool()
    if mode == "max":
        return hidden.masked_fill(~tokens, float("-inf")).amax(dim=1)
    return (hidden * tokens).sum(dim=1) / tokens.sum(dim=1)


def choose_pooling(asked: str | None, checkpoint: Checkpoint, parts: Mapping[str, Any]) -> str:
    """The pooling to measure with: as asked, or else the model's own, or else ``cls``.

    Args:
        parts: the checkpoint's parts; only the transformer and its pooling are measured.

    Raises:
        RecipeError: there is no such pooling.
        CheckpointError: the model does more than pool, which the search cannot measure.
    """
    if asked is not None and asked not in get_args(PoolingMode):
        raise RecipeError(
            f"pooling is {asked!r} - it must be one of {', '.join(get_args(PoolingMode))}"
        )
    others = [path for path in parts if path != MAIN]
    if others:
        raise CheckpointError(
            f"{checkpoint.reference} has weights besides the transformer ({', '.join(others)}) - a "
            "search measures only the transformer and its pooling - mix it with fixed weights "
            "(cocktail mix)"
        )
    mode = asked or pooling_mode(checkpoint) or "cls"
    if mode not in get_args(PoolingMode):
        raise CheckpointError(
            f"{checkpoint.reference} pools by {mode} - a search can measure only "
            f"{', '.join(get_args(PoolingMode))} - name one of them (--pooling, pooling=)"
        )
    return mode
