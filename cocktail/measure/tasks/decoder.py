"""Decoders: cross-entropy of the output's tokens given the input."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own abbreviation

from cocktail.measure.tasks.examples import ExampleError, WrittenExample
from cocktail.measure.tasks.task import Batch, by_length, length_limit, pad, pad_mask

CANDIDATES = 256
"""How many tokens' probabilities to keep at each position."""


class TokenTask:
    """N texts to generate; a row is the loss of one token of an output.

    Decoders and encoder-decoders share it; they differ in how they get from a batch to logits.

    Comparing the distributions of two models takes more than losses. So the log-probabilities are
    kept, at each position, of the token itself, of the ``CANDIDATES`` most likely tokens of the
    model that ran first, and of all others combined, which can only lower a divergence: a kilobyte
    per token instead of the whole vocabulary.
    """

    entangled = False
    scale_free = False
    metric = None

    def __init__(
        self, examples: Sequence[WrittenExample], targets: Sequence[Sequence[int]]
    ) -> None:
        self.places = [example.place for example in examples]
        self._targets = targets
        counts = [len(target) for target in targets]
        self._starts = np.cumsum([0, *counts])
        self.rows = int(self._starts[-1])
        self._counts = torch.tensor(counts)
        self._owners = torch.repeat_interleave(torch.arange(len(counts)), self._counts)
        self._candidates: Tensor | None = None  # (R, C) once a model has run
        self._has_candidates = torch.zeros(self.rows, dtype=torch.bool)

    def _logits(self, model: Any, batch: Batch) -> Tensor:
        """(T, V) logits at the positions that predict the batch's T output tokens."""
        raise NotImplementedError

    def _rows(self, picked: Sequence[int]) -> Tensor:
        spans = [torch.arange(*self._starts[i : i + 2]) for i in picked]
        return torch.cat(spans)

    def _token_ids(self, batch: Batch) -> Tensor:
        """(T,) the output tokens of a batch, in row order."""
        flat = torch.tensor([token for target in self._targets for token in target])
        tokens: Tensor = flat[batch.rows]
        return tokens

    def forward(self, model: Any, batch: Batch) -> Tensor:
        """(T,) losses of the output tokens."""
        logits = self._logits(model, batch).float()
        return F.cross_entropy(logits, self._token_ids(batch).to(logits.device), reduction="none")

    def keep(self, model: Any, batch: Batch) -> Tensor:
        """(T, CANDIDATES + 1) log-probabilities of candidates, and of all others combined."""
        logits = self._logits(model, batch).float()  # (T, V)
        tokens = self._token_ids(batch).to(logits.device)[:, None]  # (T, 1)
        candidates = self._candidates_of(batch.rows, logits, tokens)
        others = logits.scatter(1, candidates, float("-inf")).logsumexp(dim=1, keepdim=True)
        # If the whole vocabulary was kept, there are no others, and 0 * -inf would spoil sums.
        kept = torch.cat([logits.gather(1, candidates), others.clamp(min=-1e4)], dim=1)
        return kept.log_softmax(dim=1)

    def _candidates_of(self, rows: Tensor, logits: Tensor, tokens: Tensor) -> Tensor:
        """(T, C) the tokens kept at these positions: those of the model that ran first, whatever
        the other models' batches."""
        count = min(CANDIDATES, logits.shape[1])
        if self._candidates is None:
            self._candidates = torch.zeros((self.rows, count), dtype=torch.int32)
        new = ~self._has_candidates[rows]
        if new.any():
            here = new.to(logits.device)
            # The token itself is always kept.
            top = logits[here].scatter(1, tokens[here], float("inf")).topk(count).indices
            self._candidates[rows[new]] = top.int().cpu()
            self._has_candidates[rows] = True
        return self._candidates[rows].long().to(logits.device)

    def scores(
        self, rows: Tensor, examples: Sequence[int], among: Sequence[int] | None = None
    ) -> Tensor:
        """(N',) means over the tokens of each output."""
        sums = torch.zeros(len(self.places), dtype=torch.float64)
        sums = sums.index_add(0, self._owners, rows.double())
        chosen = torch.as_tensor(list(examples))
        return sums[chosen] / self._counts[chosen]

    def losses(self, scores: Tensor, scale: Tensor) -> Tensor:
        """The scores unchanged: a language model's probabilities count, not their order."""
        return scores

    def scale_slopes(self, scores: Tensor, scale: float) -> tuple[float, float]:
        return 0.0, 0.0

    def groups(self, rows: Tensor, examples: Sequence[int]) -> Tensor:
        return rows.new_empty(len(examples), 0)

    def batch_mean_loss(self, rows: Tensor, batch_size: int, order: Sequence[int]) -> float:
        """The mean over the tokens of a batch, then over the batches, as in LM_Cocktail."""
        means = []
        for start in range(0, len(order), batch_size):
            batch = self._rows(order[start : start + batch_size])
            means.append(rows.double()[batch].mean().item())
        return float(np.mean(means))


class DecoderTask(TokenTask):
    """Texts to continue, tokenised as LM_Cocktail does: ``input + " " + output`` and the end token.

    Args:
        max_length: the most tokens of input and output together.

    Raises:
        ExampleError: an input leaves no room for its output.
    """

    def __init__(
        self,
        examples: Sequence[WrittenExample],
        tokenizer: Any,
        model: Any,
        *,
        max_length: int,
    ) -> None:
        limit = length_limit(max_length, tokenizer)
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        self._ids: list[list[int]] = []
        targets = []
        for example in examples:
            ids = [*tokenizer.encode(f"{example.input} {example.output}"), *end][:limit]
            # Nothing predicts the very first token.
            prompt = max(1, len(tokenizer.encode(example.input)))
            if prompt >= len(ids):
                raise ExampleError(
                    f"{example.place}: its input alone has {prompt} tokens (the limit is {limit}) "
                    "- the loss is taken on the output, which has no room left - shorten the "
                    "input, or raise max_input_length (--max-input-length) as far as the model "
                    "allows"
                )
            self._ids.append(ids)
            targets.append(ids[prompt:])
        super().__init__(examples, targets)
        self._pad = tokenizer.pad_token_id or 0  # masked, so any token will do
        self._cuts_logits = "logits_to_keep" in inspect.signature(model.forward).parameters

    def batches(self, max_tokens: int, examples: Sequence[int] | None = None) -> list[Batch]:
        chosen = list(range(len(self.places)) if examples is None else examples)
        made = []
        for batch in by_length([len(self._ids[i]) for i in chosen], max_tokens):
            picked = [chosen[place] for place in batch]
            ids = [self._ids[i] for i in picked]
            # The last token predicts nothing that counts.
            ids = [row[:-1] for row in ids]
            inputs = {"input_ids": pad(ids, self._pad), "attention_mask": pad_mask(ids)}
            made.append(Batch(inputs, self._rows(picked), frozenset(picked)))
        return made

    def _logits(self, model: Any, batch: Batch) -> Tensor:
        inputs = {name: tensor.to(model.device) for name, tensor in batch.inputs.items()}
        lengths = batch.inputs["attention_mask"].sum(dim=1)  # (B,)
        # An example's rows follow one another, in the order of the batch.
        owners = torch.unique_consecutive(self._owners[batch.rows])
        counts = self._counts[owners]
        width = inputs["input_ids"].shape[1]
        first = int((lengths - counts).min())
        if self._cuts_logits:
            logits = model(**inputs, use_cache=False, logits_to_keep=width - first).logits
        else:
            logits = model(**inputs).logits[:, first:]
        positions = torch.arange(first, width)
        wanted = (positions >= (lengths - counts)[:, None]) & (positions < lengths[:, None])
        chosen: Tensor = logits[wanted.to(logits.device)]  # (T, V)
        return chosen
