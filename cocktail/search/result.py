"""What a search found, as values to print, serialise and draw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cocktail.search.changes import Change
from cocktail.search.curve import Point
from cocktail.search.verdict import Verdict
from cocktail.system.notebook import html_table
from cocktail.write.card import Figure


@dataclass(frozen=True)
class SearchResult:
    """Weights, and the evidence for and against them.

    Attributes:
        models: K references in the order given.
        model_type: ``reranker``, ``encoder``, ``decoder`` or ``encoder-decoder``.
        base: index of the base.
        strategy: the strategy that was asked for.
        seed: the seed of all random draws.
        metric: name of the target's ranking metric; ``None`` where there is only a loss.
        general_measure: ``ndcg@10`` or ``loss`` of labelled retain examples, ``agreement`` with the
            base or ``divergence`` from it on text without labels; ``None`` without either.
        more_is_better: whether more of that measure is better.
        max_drop: how far it was allowed to drop.
        verdict: what was chosen and why.
        points: all mixes that were measured: those on the curve in their order from the base, then
            those off it.
        places, general_places: where each example came from.
        changes: the queries whose ranking changed most from the base to the choice.
        forwards: cost in passes over the examples; a backward counts as two.
        mixes: how often the model was mixed anew.
        seconds: wall time.
        interrupted: whether Ctrl-C stopped it; the weights are then the best found so far.
        compute_dtype: the dtype of the model that was measured.
        notes: what the search cannot know, and how to supply it.
    """

    models: tuple[str, ...]
    model_type: str
    base: int
    strategy: str
    seed: int
    metric: str | None
    general_measure: str | None
    more_is_better: bool
    max_drop: float
    verdict: Verdict
    points: tuple[Point, ...]
    places: tuple[str, ...]
    general_places: tuple[str, ...]
    changes: tuple[Change, ...]
    forwards: float
    mixes: int
    seconds: float
    interrupted: bool
    compute_dtype: str
    notes: tuple[str, ...] = ()

    def point(self, name: str) -> Point:
        """The point of this name; raises KeyError if there is none."""
        for point in self.points:
            if point.name == name:
                return point
        raise KeyError(name)

    @property
    def chosen(self) -> Point:
        return self.point(self.verdict.chosen)

    @property
    def weights(self) -> tuple[float, ...]:
        """K numbers that sum to 1, in the order of the models."""
        return self.chosen.weights

    @property
    def curve(self) -> tuple[Point, ...]:
        """The points on the curve, in their order from the base."""
        return tuple(point for point in self.points if point.share is not None)

    def figures(self, target: str | None = None, general: str | None = None) -> list[Figure]:
        """What was measured on the choice and the base, for the model card.

        Args:
            target, general: the names of the files of examples, if they come from files.
        """
        base = self.point("base")
        sides = [
            ("target", target, self.metric, self.chosen.metric, base.metric),
            ("target", target, "loss", self.chosen.loss, base.loss),
            ("general", general, self.general_measure, self.chosen.general, base.general),
        ]
        return [
            Figure(
                f"{kind} ({file})" if file else kind,
                measure,
                own.mean.mean,
                before.mean.mean,
                str(own.difference),
            )
            for kind, file, measure, own, before in sides
            if measure is not None and own is not None and before is not None
        ]

    @property
    def gained(self) -> bool:
        """Whether the choice is anything but the base."""
        return self.weights[self.base] < 1

    def _repr_html_(self) -> str:
        measures = {"target": self.metric, "general": self.general_measure}
        named = [f"{side} {name}" for side, name in measures.items() if name is not None]
        rows = [["mix", "weights", "target loss", *named]]
        for point in self.points:
            mark = " *" if point.name == self.verdict.chosen else ""
            weights = " ".join(f"{weight:.2f}" for weight in point.weights)
            sides = [point.loss, point.metric, point.general]
            figures = [f"{side.mean.mean:.4f}" for side in sides if side is not None]
            rows.append([point.name + mark, weights, *figures])
        return html_table(rows, f"{self.verdict.headline} {self.verdict.reason}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        held_out = self.verdict.held_out
        return {
            "models": list(self.models),
            "model_type": self.model_type,
            "weights": list(self.weights),
            "base": self.models[self.base],
            "strategy": self.strategy,
            "seed": self.seed,
            "compute_dtype": self.compute_dtype,
            "chosen": self.verdict.chosen,
            "outcome": self.verdict.outcome,
            "headline": self.verdict.headline,
            "reason": self.verdict.reason,
            "held_out_difference": None if held_out is None else held_out.to_dict(),
            "max_drop": self.max_drop,
            "measures": {
                "loss": "loss",
                "metric": self.metric,
                "general": self.general_measure,
                "general_more_is_better": self.more_is_better,
            },
            "interrupted": self.interrupted,
            "examples": list(self.places),
            "general_examples": list(self.general_places),
            "points": [point.to_dict() for point in self.points],
            "changes": [change.to_dict() for change in self.changes],
            "cost": {
                "forward_equivalents": round(self.forwards, 3),
                "mixes": self.mixes,
                "seconds": round(self.seconds, 3),
            },
            "notes": list(self.notes),
        }
