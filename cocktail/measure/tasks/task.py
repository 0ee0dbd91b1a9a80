"""What measuring examples has in common for every kind of model.

A task holds N examples, tokenised once. A model turns their texts into R rows of output (a score
per pair, an embedding per text, a loss per token); the task turns rows into a loss per example. The
two steps are separate so that a gradient can pass through rows computed in micro-batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import softmax
from torch import Tensor

from cocktail.measure.tasks.examples import ExampleError

Values = npt.NDArray[np.float64]
"""One for each example."""

CPU_TOKENS = 1024
"""Padded tokens of a forward: fewer cost time in calls, and more overflow the cache."""
ACCELERATOR_TOKENS = 16384
BACKWARD_SHARE = 2
"""A backward keeps the activations of all layers, so its batches are half as large. Measured on a
CPU, that costs no time from a width of 576 on."""


@dataclass(frozen=True)
class Batch:
    """Model inputs of about the same length, which are run together.

    Attributes:
        inputs: tensors of shape (B, L), padded to the longest of the B texts.
        rows: indices of the output rows that this batch fills.
        examples: indices of the examples that these rows belong to.
    """

    inputs: dict[str, Tensor]
    rows: Tensor
    examples: frozenset[int]

    @property
    def tokens(self) -> int:
        """Padded tokens, which is what a forward costs."""
        return sum(t.numel() for name, t in self.inputs.items() if name.endswith("input_ids"))

    @property
    def texts(self) -> int:
        """B"""
        return len(self.inputs["input_ids"])


class Task(Protocol):
    """N examples of one kind.

    Attributes:
        places: where each example came from, for messages.
        rows: R, the rows of output that all examples need.
        entangled: whether an example's loss also depends on the rows of other examples.
        scale_free: whether a positive factor on the scores changes no ranking, so that it is fitted
            and not credited to the weights.
        metric: name of the ranking metric of ``groups``; ``None`` where there is only a loss.
    """

    @property
    def places(self) -> Sequence[str]: ...
    @property
    def rows(self) -> int: ...
    @property
    def entangled(self) -> bool: ...
    @property
    def scale_free(self) -> bool: ...
    @property
    def metric(self) -> str | None: ...

    def batches(self, max_tokens: int, examples: Sequence[int] | None = None) -> list[Batch]:
        """The texts of these examples (all by default) in micro-batches, most tokens first.

        Args:
            max_tokens: the most padded tokens of a batch, inputs and outputs together.
        """

    def forward(self, model: Any, batch: Batch) -> Tensor:
        """Rows of output, shape (B', ...), fp32 or wider, with a graph where gradients are on."""

    def keep(self, model: Any, batch: Batch) -> Tensor:
        """What to keep of a model's output, instead of rows, for comparison with other models."""

    def scores(
        self, rows: Tensor, examples: Sequence[int], among: Sequence[int] | None = None
    ) -> Any:
        """What the losses of these examples are computed from, before scaling; differentiable.

        Args:
            among: the examples whose passages are candidates where the task is entangled; by
                default, ``examples`` themselves.
        """

    def losses(self, scores: Any, scale: Tensor) -> Tensor:
        """(N',) fp64 losses of the examples with these scores, multiplied by ``scale``."""

    def scale_slopes(self, scores: Any, scale: float) -> tuple[float, float]:
        """The first two derivatives in the scale, summed over the examples' losses."""

    def groups(self, rows: Tensor, examples: Sequence[int]) -> Tensor:
        """(N', G) scores of what each example ranks, the positive first, padded with ``-inf``.

        G is 0 where nothing is ranked.
        """

    def batch_mean_loss(self, rows: Tensor, batch_size: int, order: Sequence[int]) -> float:
        """The loss by which LM_Cocktail weighs a model, over batches of consecutive examples."""


def token_budget(device: torch.device) -> int:
    """Padded tokens of one forward on this device."""
    return CPU_TOKENS if device.type == "cpu" else ACCELERATOR_TOKENS


def by_length(lengths: Sequence[Any], max_tokens: int) -> list[list[int]]:
    """Cut 0..N-1 into batches of texts of similar length, with up to ``max_tokens`` padded tokens.

    A text longer than ``max_tokens`` gets a batch of its own. The batch with the most tokens comes
    first, so that the memory it leaves behind has room for all others.

    Args:
        lengths: (N,) tokens, or (N, S) for texts with several sides that are padded separately.
    """
    sides = np.maximum(np.atleast_2d(np.array(lengths).T).T, 1)  # (N, S)
    batches: list[list[int]] = []
    longest = sides[:1]
    for index in np.argsort(-sides.sum(axis=1), kind="stable").tolist():
        wider = np.maximum(longest, sides[index])
        if batches and (len(batches[-1]) + 1) * wider.sum() <= max_tokens:
            batches[-1].append(index)
            longest = wider
        else:
            batches.append([index])
            longest = sides[index]
    return sorted(batches, key=lambda b: len(b) * sides[b].max(axis=0).sum(), reverse=True)


def pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """(B, L) token ids, padded on the right to the longest row."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


def pad_mask(rows: Sequence[Sequence[int]]) -> Tensor:
    """(B, L) 1 for tokens, 0 for padding."""
    return pad([[1] * len(row) for row in rows], 0)


def length_limit(asked: int, tokenizer: Any) -> int:
    """The tokens that a text may have: what was asked for, within the tokenizer's limit.

    Raises:
        ExampleError: there would be no room for the text.
    """
    if asked < 4:
        raise ExampleError(
            f"max_input_length is {asked} - it must leave room for a text and the special tokens "
            "around it - use 4 or more"
        )
    return int(min(asked, getattr(tokenizer, "model_max_length", None) or asked))


def softmax_slopes(
    values: Tensor, left_out: Tensor, targets: Tensor, scale: float
) -> tuple[float, float]:
    """The first two derivatives in s of the sum over rows of -log softmax(s * values)[target].

    They are the mean of the values under the softmax minus the target's value, and their variance.

    Args:
        values: (Q, C) in fp64.
        left_out: (Q, C) passages that do not compete.
        targets: (Q,) columns.
    """
    # NumPy, as torch wakes its threads for even the smallest softmax, thousands of times a search.
    numbers = values.numpy()
    with np.errstate(invalid="ignore", over="ignore"):  # a broken model's losses are named later
        shares = softmax(np.where(left_out.numpy(), -np.inf, numbers * scale), axis=1)
        means = (shares * numbers).sum(axis=1)
        variances = (shares * (numbers - means[:, None]) ** 2).sum(axis=1)
        wanted = numbers[np.arange(len(numbers)), targets.numpy()]
        return float((means - wanted).sum()), float(variances.sum())


def ndcg_at_10(scores: Tensor) -> Values:
    """(Q,) NDCG@10 of rows (Q, G) with one relevant passage, in column 0.

    Missing passages are ``-inf``.

    With one relevant passage the ideal gain is 1, and NDCG is 1 / log2(1 + rank) down to rank 10.
    A tie counts against the model, so that scoring everything alike does not pay.
    """
    rank = (scores[:, 1:] >= scores[:, :1]).sum(dim=1).numpy() + 1.0
    return np.where(rank <= 10, 1 / np.log2(1 + rank), 0.0)
