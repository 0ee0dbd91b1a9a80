"""Draw groups from examples, batch by batch, every draw seeded.

A group is what one query is trained on: one positive and ``group_size - 1`` negatives. What is
drawn depends on (seed, epoch, example) alone, so neither the number of data loader workers nor
that of processes changes it.
"""

from __future__ import annotations

import logging
import multiprocessing
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset, Sampler

from reranker_ft.data.examples import Example, text_key
from reranker_ft.data.instructions import Instructions
from reranker_ft.errors import ArgumentError

logger = logging.getLogger(__name__)

# A shorter text is not worth cutting into three (FlagEmbedding's threshold, in characters).
SHUFFLED_TEXT_LENGTH = 100


@dataclass(frozen=True)
class Group:
    """One query with its passages, the positive first.

    Attributes:
        passages: G texts.
        sources: The same as the data have them: without instructions, not shuffled.
        positives: Keys of all positives of the query, the ones that were not drawn too.
        teacher_scores: G scores of a teacher, where the data have them.
        weight: 1; 0 for a group that only keeps a process busy which has none of its own.
        scored: Whether the query is scored here; otherwise the group only lends its passages.
        draw_seed: What further draws for this group are seeded with.
    """

    query: str
    passages: tuple[str, ...]
    sources: tuple[str, ...]
    positives: frozenset[int]
    teacher_scores: tuple[float, ...] | None
    weight: float
    scored: bool
    draw_seed: tuple[int, ...]

    @cached_property
    def keys(self) -> tuple[int, ...]:
        """Return G keys of the passages, which ignore instructions and white space."""
        return tuple(map(text_key, self.sources))


class KnownPositives:
    """The positives of every query on all of its lines, in 16 bytes each.

    Args:
        examples: All that are trained on.
    """

    def __init__(self, examples: Sequence[Example]) -> None:
        numbers = array("Q")
        for example in examples:
            query = text_key(example.query)
            for text in example.pos:
                numbers.extend((query, text_key(text)))
        pairs = np.frombuffer(numbers, np.uint64).reshape(-1, 2)
        self._queries, self._positives = pairs[np.argsort(pairs[:, 0])].T

    def of(self, query: str) -> frozenset[int]:
        """Return keys of all that is a positive of this query on some line."""
        key = np.uint64(text_key(query))
        start, end = (np.searchsorted(self._queries, key, side) for side in ("left", "right"))
        return frozenset(self._positives[start:end].tolist())


class GroupKey(NamedTuple):
    """Which group to make: see ``Group`` for the fields."""

    epoch: int
    example: int
    weight: float = 1.0
    scored: bool = True


class GroupDataset(Dataset[Group]):
    """Makes groups of examples, on demand and in any order.

    Args:
        examples: What to draw from.
        group_size: G; one positive and G - 1 negatives. Negatives are drawn without replacement;
            where there are fewer, each is taken equally often, give or take one, with a warning.
        instructions: Put around queries and passages.
        seed: Of all draws.
        shuffle_ratio: How often the thirds of a long positive change places.
        known_positives: Of all lines; ``None`` leaves a group with those of its own line.

    Raises:
        ArgumentError: ``group_size`` is below 2, or ``shuffle_ratio`` is no share.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        *,
        group_size: int,
        instructions: Instructions | None = None,
        seed: int = 0,
        shuffle_ratio: float = 0.0,
        known_positives: KnownPositives | None = None,
    ) -> None:
        if group_size < 1:
            raise ArgumentError(
                f"train_group_size is {group_size} - a group has a positive - use 2 or more"
            )
        if not 0 <= shuffle_ratio <= 1:
            raise ArgumentError(f"shuffle_ratio is {shuffle_ratio} - it is a share - use 0 to 1")
        self.examples = examples
        self.group_size = group_size
        self.instructions = instructions or Instructions()
        self.seed = seed
        self.shuffle_ratio = shuffle_ratio
        self.known_positives = known_positives
        # Shared with the data loader's workers, so that they warn once together.
        self._warned = multiprocessing.Value("b", False)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, key: GroupKey) -> Group:
        example: Example = self.examples[key.example]
        draw_seed = (self.seed, key.epoch, key.example)
        random = np.random.default_rng(draw_seed)
        positive = int(random.integers(len(example.pos)))
        negatives = self._draw_negatives(example, key.example, random)
        sources = (example.pos[positive], *(example.neg[i] for i in negatives))
        texts = (self._shuffled(sources[0], random), *sources[1:])
        teacher_scores = None
        if example.pos_scores is not None and example.neg_scores is not None:
            teacher_scores = (
                example.pos_scores[positive],
                *(example.neg_scores[i] for i in negatives),
            )
        prompt = example.passage_prompt
        return Group(
            query=self.instructions.of_query(example.query, example.prompt),
            passages=tuple(self.instructions.of_passage(text, prompt) for text in texts),
            sources=sources,
            positives=frozenset(map(text_key, example.pos))
            if self.known_positives is None
            else self.known_positives.of(example.query),
            teacher_scores=teacher_scores,
            weight=key.weight,
            scored=key.scored,
            draw_seed=draw_seed,
        )

    def _draw_negatives(
        self, example: Example, number: int, random: np.random.Generator
    ) -> list[int]:
        wanted, there = self.group_size - 1, len(example.neg)
        if there >= wanted:
            return list(map(int, random.permutation(there)[:wanted]))
        if not there:
            raise ArgumentError(
                f"example {number + 1} has no negatives - a group of {self.group_size} needs one - "
                "add negatives, or set --train_group_size 1 with --in_batch_negatives"
            )
        with self._warned.get_lock():
            first_time, self._warned.value = not self._warned.value, True
        if first_time:
            logger.warning(
                "Example %d has %d negatives and a group of %d needs %d: negatives are repeated, "
                "here and wherever else there are too few.",
                number + 1,
                there,
                self.group_size,
                wanted,
            )
        rounds = -(-wanted // there)
        repeated = np.concatenate([random.permutation(there) for _ in range(rounds)])
        return list(map(int, repeated[:wanted]))

    def _shuffled(self, text: str, random: np.random.Generator) -> str:
        if len(text) <= SHUFFLED_TEXT_LENGTH or random.random() >= self.shuffle_ratio:
            return text
        third = len(text) // 3 + 1
        parts = [text[i : i + third] for i in range(0, len(text), third)]
        return " ".join(parts[i] for i in random.permutation(len(parts)))


class GroupBatchSampler(Sampler[list[GroupKey]]):
    """Batches of one process, cut out of batches that all processes agree on.

    The examples are shuffled by (seed, epoch) and dealt in global batches of ``batch_size`` times
    ``processes``; process r takes the r-th slice. The last global batch may be smaller: its
    examples are dealt evenly, and a process left without any gets one of weight 0, so that every
    example counts once an epoch and no process waits for another.

    Args:
        examples: How many there are.
        batch_size: Queries per process.
        drop_last: Leave out a last global batch that is not full.
        lend: Also give the groups of the other processes, unscored, in the order of the global
            batch (for negatives from other queries).

    Raises:
        ArgumentError: ``drop_last`` leaves no batch at all.
    """

    def __init__(
        self,
        examples: int,
        batch_size: int,
        *,
        seed: int,
        process: int = 0,
        processes: int = 1,
        drop_last: bool = False,
        lend: bool = False,
    ) -> None:
        self.examples = examples
        self.global_batch_size = batch_size * processes
        self.seed = seed
        self.process = process
        self.processes = processes
        self.drop_last = drop_last
        self.lend = lend
        self.epoch = 0
        if not len(self):
            raise ArgumentError(
                f"{examples} examples do not fill one batch of {self.global_batch_size} - "
                "--dataloader_drop_last leaves out a batch that is not full - use smaller batches"
            )

    def set_epoch(self, epoch: int) -> None:
        """Return which shuffle and which draws come next; the Trainer calls this."""
        self.epoch = epoch

    def __len__(self) -> int:
        full, rest = divmod(self.examples, self.global_batch_size)
        return full + bool(rest and not self.drop_last)

    def __iter__(self) -> Iterator[list[GroupKey]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.examples)
        for batch in range(len(self)):
            start = batch * self.global_batch_size
            yield self._own_keys(order[start : start + self.global_batch_size].tolist())

    def _own_keys(self, batch: list[int]) -> list[GroupKey]:
        bounds = [len(batch) * p // self.processes for p in range(self.processes + 1)]
        own = range(bounds[self.process], bounds[self.process + 1])
        keys = [
            GroupKey(self.epoch, example, scored=place in own)
            for place, example in enumerate(batch)
            if self.lend or place in own
        ]
        if not own:
            keys.append(GroupKey(self.epoch, batch[0], weight=0.0))
        return keys
