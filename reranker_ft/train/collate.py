"""Collate groups into a training batch: micro-batches, and the place of every score in (Q, C)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from reranker_ft.model.forward import forward_layers, looked_up_once
from reranker_ft.model.pairs import Pair, PairEncoder
from reranker_ft.model.scoring import micro_batches
from reranker_ft.train.groups import Group


class TrainingBatch(TypedDict):
    """Q queries with C = G + N passages each (G of the group, N of other queries).

    Attributes:
        micro_batches: Model inputs (B, L); the micro-batches hold all pairs of the batch.
        places: (Q, C) where the scores of the concatenated micro-batches belong.
        present: (Q, C) False where there was no passage to fill the place; ``None`` if all are
            filled.
        teacher_scores: (Q, G), or ``None`` where the data have none.
        weights: (Q,) 1, or 0 for a query that does not count.
        idle_forwards: Forwards that another process makes more than this one in this batch.
    """

    micro_batches: list[dict[str, Tensor]]
    places: Tensor
    present: Tensor | None
    teacher_scores: Tensor | None
    weights: Tensor
    idle_forwards: int


class GroupCollator:
    """Tokenizes the groups of a step in one go and cuts the pairs into micro-batches.

    The pairs of all queries are sorted by length and padded to their neighbours only, so that a
    forward computes next to no padding. Example, two queries of three passages:

        tokens of the pairs     micro-batches             places (2, 3)
        [[12, 30, 14],          30 | 22 20 | 14 12 11     [[4, 0, 3],
         [11, 20, 22]]                                     [5, 2, 1]]

    Runs in the data loader's workers where there are any, so a step does not wait for it.

    Args:
        encoder: Makes token ids of pairs.
        micro_batch_tokens: Maximum padded tokens per forward pass.
        in_batch_negatives: N further passages per query, drawn without replacement from the other
            queries of the batch. Never a positive that the group knows, nor a passage it has
            already, whatever their instructions and white space. Fewer where the batch does not
            have as many.
        always_mask: See ``Encodings.pad``.
        shared: See ``scoring.micro_batches``.
    """

    def __init__(
        self,
        encoder: PairEncoder,
        *,
        micro_batch_tokens: int,
        in_batch_negatives: int = 0,
        always_mask: bool = False,
        shared: bool = False,
    ) -> None:
        self.encoder = encoder
        self.micro_batch_tokens = micro_batch_tokens
        self.in_batch_negatives = in_batch_negatives
        self.always_mask = always_mask
        self.shared = shared

    def __call__(self, groups: Sequence[Group]) -> TrainingBatch:
        scored = [group for group in groups if group.scored]
        rows = [(*group.passages, *self._borrow(group, groups)) for group in scored]
        columns = len(scored[0].passages) + self.in_batch_negatives
        pairs: list[Pair] = []
        pair_of_place = np.full((len(rows), columns), -1, np.int64)
        for row, passages in enumerate(rows):
            pair_of_place[row, : len(passages)] = np.arange(len(passages)) + len(pairs)
            pairs += [(scored[row].query, passage) for passage in passages]
        encodings = self.encoder(pairs)
        batches = micro_batches(encodings, self.micro_batch_tokens, shared=self.shared)
        place_of_pair = np.argsort(np.concatenate(batches))
        present = pair_of_place >= 0
        teachers = [group.teacher_scores for group in scored]
        return TrainingBatch(
            micro_batches=[encodings.pad(batch, always_mask=self.always_mask) for batch in batches],
            places=torch.from_numpy(np.where(present, place_of_pair[pair_of_place], 0)),
            present=None if present.all() else torch.from_numpy(present),
            teacher_scores=None
            if any(teacher is None for teacher in teachers)
            else torch.tensor(teachers, dtype=torch.float32),
            weights=torch.tensor([group.weight for group in scored], dtype=torch.float32),
            idle_forwards=0,
        )

    def _borrow(self, group: Group, groups: Sequence[Group]) -> list[str]:
        """Return up to N passages of the other groups for this one."""
        if not self.in_batch_negatives:
            return []
        taken = group.positives.union(group.keys)
        lent = {
            key: passage
            for other in groups
            if other is not group and other.weight
            for key, passage in zip(other.keys, other.passages, strict=True)
            if key not in taken
        }
        # The group's own draws used draw_seed; one more number starts an independent stream.
        random = np.random.default_rng((*group.draw_seed, 1))
        candidates = list(lent.values())
        return [candidates[i] for i in random.permutation(len(lent))[: self.in_batch_negatives]]


def group_scores(model: nn.Module, batch: TrainingBatch) -> Tensor:
    """Return (K, Q, C) fp32 scores with gradients; an empty place holds that of another pair.

    K layers of a layerwise model score, the last of them last; of others there is one.
    """
    micro_batches = batch["micro_batches"]
    with looked_up_once(model, micro_batches):
        scores = torch.cat([forward_layers(model, inputs) for inputs in micro_batches], dim=1)
    for _ in range(batch["idle_forwards"]):
        # DDP and FSDP communicate in every forward, so all processes make equally many.
        one_pair = {name: tensor[:1] for name, tensor in micro_batches[-1].items()}
        scores = scores + 0 * forward_layers(model, one_pair)
    return scores[:, batch["places"]]
