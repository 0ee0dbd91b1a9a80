"""A search result of made-up figures, for what prints and draws."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cocktail.search.changes import Change, Move
from cocktail.search.curve import Point, Side
from cocktail.search.intervals import bootstrap_interval
from cocktail.search.result import SearchResult
from cocktail.search.verdict import Verdict

PASSAGES = ("The <b>first</b> passage & more.", "A second passage.", "A third one.")


def made_up(*, general: bool = True, chosen: int = 4, examples: int = 12) -> SearchResult:
    """Two ingredients; the target gets better along the curve, what is general worse."""
    generator = np.random.default_rng(0)
    noise = generator.normal(0, 0.02, (3, 11, examples))

    def side(base: float, slope: float, row: int) -> list[Side]:
        values = [base + slope * i / 10 + noise[row, i] for i in range(11)]
        return [
            Side(v, bootstrap_interval(v, seed=0), bootstrap_interval(v - values[0], seed=0))
            for v in values
        ]

    loss, metric, kept = side(1.0, -0.4, 0), side(0.6, 0.2, 1), side(0.97, -0.1, 2)
    names = ["base", *(f"{10 * i}% of the way" for i in range(1, 10)), "fine-tune"]
    names[5] = "plain average"
    points = tuple(
        Point(name, (1 - i / 10, i / 10), i / 10, loss[i], metric[i], kept[i] if general else None)
        for i, name in enumerate(names)
    )
    verdict = Verdict(
        names[chosen], "mix", "Take 0.4 of the fine-tune.", "its loss is lower",
        bootstrap_interval(loss[chosen].values - loss[0].values, seed=0),
    )  # fmt: skip
    return SearchResult(
        models=("./base", "./tuned"), model_type="reranker", base=0, strategy="auto", seed=0,
        metric="ndcg@10", general_measure="ndcg@10" if general else None, more_is_better=general,
        max_drop=0.01, verdict=verdict, points=points,
        places=places("target.jsonl", examples),
        general_places=places("general.jsonl", examples if general else 0),
        changes=(change("target", 2, 1), change("target", 1, 3), change("general", 1, 2)),
        forwards=22.0, mixes=11, seconds=3.0, interrupted=False, compute_dtype="float32",
        notes=() if general else ("nothing says what this costs elsewhere",),
    )  # fmt: skip


def places(name: str, count: int) -> tuple[str, ...]:
    return tuple(f"{name}:{i + 1}" for i in range(count))


def change(side: str, before: int, after: int) -> Change:
    """The first passage moves from one rank to the other, the others stay in their order."""

    def ranks(first: int) -> Sequence[int]:
        others = iter([rank for rank in (1, 2, 3) if rank != first])
        return [first, next(others), next(others)]

    moves = [
        Move(passage, old, new, i == 0)
        for i, (passage, old, new) in enumerate(
            zip(PASSAGES, ranks(before), ranks(after), strict=True)
        )
    ]
    query = f"what of {side}, {before} to {after}?"
    moves.sort(key=lambda move: move.after)
    return Change(side, f"{side}.jsonl:1", query, 1 / after - 1 / before, tuple(moves))
