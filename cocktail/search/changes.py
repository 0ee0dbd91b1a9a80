"""The queries whose ranking changed most between two mixes, and the passages that moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cocktail.measure.bench import Bench
from cocktail.measure.tasks.examples import Example, RankedExample

SHOWN = 5
"""Queries to report in each direction for each set of examples."""


@dataclass(frozen=True)
class Move:
    """A passage with its ranks before and after; ranks start at 1."""

    passage: str
    before: int
    after: int
    relevant: bool


@dataclass(frozen=True)
class Change:
    """One query's ranking before and after.

    Attributes:
        side: ``target`` or ``general``.
        place: where the example came from.
        gain: the change of the reciprocal rank of the passage that should be first: the labelled
            positive or, without labels, the one that the base put first.
        moves: the passages in their new order, including all that moved.
    """

    side: str
    place: str
    query: str
    gain: float
    moves: tuple[Move, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "side": self.side,
            "place": self.place,
            "query": self.query,
            "gain": self.gain,
            "moves": [vars(move) for move in self.moves],
        }


def changed_rankings(
    bench: Bench, before: Mapping[str, Tensor], after: Mapping[str, Tensor]
) -> list[Change]:
    """The ``SHOWN`` queries that gain most and that lose most, on each side.

    Args:
        before, after: for each side, (N, G) scores of what each example ranks.
    """
    sides: dict[str, tuple[Sequence[Example], bool]] = {
        "target": (bench.examples, True),
        "general": (bench.retain_examples, bench.labelled),
    }
    found: list[Change] = []
    for side in before:
        examples, labelled = sides[side]
        ranks = [_ranks(scores[side]) for scores in (before, after)]
        changes = [
            _change(side, example, before, after, labelled)
            for example, before, after in zip(examples, *ranks, strict=True)
            if isinstance(example, RankedExample)
        ]
        changes.sort(key=lambda change: (-change.gain, change.place))
        found += [change for change in changes[:SHOWN] if change.gain > 0]
        found += [change for change in changes[: -SHOWN - 1 : -1] if change.gain < 0]
    return found


def _ranks(scores: Tensor) -> list[list[int]]:
    """The rank, from 1, of each passage of each example."""
    order = (-scores.numpy()).argsort(axis=1, kind="stable")
    ranks: list[list[int]] = (order.argsort(axis=1) + 1).tolist()
    return ranks


def _change(
    side: str, example: RankedExample, before: list[int], after: list[int], labelled: bool
) -> Change:
    count = len(example.passages)
    first = 0 if labelled else before[:count].index(min(before[:count]))
    moves = [
        Move(passage, before[i], after[i], labelled and i == first)
        for i, passage in enumerate(example.passages)
    ]
    moves.sort(key=lambda move: move.after)
    gain = 1 / after[first] - 1 / before[first]
    return Change(side, example.place, example.query, gain, tuple(moves))
