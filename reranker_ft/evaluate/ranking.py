"""Rank held-out queries during training: encoded once, scored at every evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from reranker_ft.data.examples import Example
from reranker_ft.data.instructions import Instructions
from reranker_ft.evaluate.metrics import METRIC_BOUNDS, Estimate, bootstrap_mean, per_query_metrics
from reranker_ft.model.loss import softmax_cross_entropy
from reranker_ft.model.pairs import Encodings, Pair, PairEncoder


class RankingSet:
    """Queries with all their passages, as token ids.

    Args:
        examples: Each with its positives and negatives; a text counts once, as the positive where
            it is both.
        encoder: Makes the token ids.
        instructions: Put around queries and passages, as in training.
        process, processes: This process ranks every ``processes``-th query, from number
            ``process``.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        encoder: PairEncoder,
        instructions: Instructions,
        *,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        self.processes = processes
        pairs: list[Pair] = []
        self.relevance: list[npt.NDArray[np.int64]] = []
        for example in (examples[i] for i in range(process, len(examples), processes)):
            positives = list(dict.fromkeys(example.pos))
            negatives = [text for text in dict.fromkeys(example.neg) if text not in positives]
            query = instructions.of_query(example.query, example.prompt)
            pairs += [
                (query, instructions.of_passage(text, example.passage_prompt))
                for text in positives + negatives
            ]
            self.relevance.append(np.array([1] * len(positives) + [0] * len(negatives)))
        self.encodings: Encodings = encoder(pairs)

    def scores(self, score: Callable[[Encodings], Tensor]) -> list[npt.NDArray[np.float32]]:
        """Return the scores of each query's passages, in the order of ``relevance``.

        Args:
            score: Gives (N,) scores of N pairs.
        """
        if not self.relevance:  # fewer queries than processes
            return []
        ends = np.cumsum([len(grades) for grades in self.relevance])[:-1]
        return np.split(score(self.encodings).numpy(), ends)


def interleaved(parts: Sequence[Sequence[Any]]) -> list[Any]:
    """Return what the processes found, one list each, in the order of the file.

    So the bootstrap draws the same queries however many processes there are.
    """
    total = sum(map(len, parts))
    return [parts[i % len(parts)][i // len(parts)] for i in range(total)]


def ranking_metrics(
    scores: Sequence[npt.NDArray[np.float32]], relevance: Sequence[npt.NDArray[np.int64]]
) -> dict[str, Estimate]:
    """Return mean and 95 % interval over the queries for every ranking metric."""
    return {
        name: bootstrap_mean(values, bounds=METRIC_BOUNDS)
        for name, values in per_query_metrics(scores, relevance).items()
    }


def ranking_loss(
    scores: Sequence[npt.NDArray[np.float32]], relevance: Sequence[npt.NDArray[np.int64]]
) -> float:
    """Return the mean softmax cross-entropy of each positive against all negatives of its query."""
    losses: list[float] = []
    for values, grades in zip(scores, relevance, strict=True):
        row = torch.from_numpy(values)
        negatives = row[torch.from_numpy(grades == 0)]
        rows: list[Tensor] = [
            torch.cat([positive[None], negatives]) for positive in row[torch.from_numpy(grades > 0)]
        ]
        losses.append(float(softmax_cross_entropy(torch.stack(rows)).mean()))
    return float(np.mean(losses))


def score_spread(scores: Sequence[npt.NDArray[np.float32]]) -> float:
    """Return the mean over the queries of the standard deviation of their scores, in logits."""
    return float(np.mean([values.std() for values in scores]))
