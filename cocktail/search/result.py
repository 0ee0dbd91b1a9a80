"""What a search found, as values that print, serialise and draw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cocktail.search.changes import Change
from cocktail.search.curve import Point
from cocktail.search.verdict import Verdict
from cocktail.system.notebook import html_table


@dataclass(frozen=True)
class SearchResult:
    """Weights and everything that speaks for and against them.

    Attributes:
        models: K references in the order given.
        model_type: ``reranker``, ``encoder``, ``decoder`` or ``encoder-decoder``.
        base: index of the base.
        strategy: that was asked for.
        seed: of what is drawn.
        metric: name of the target's ranking metric, ``None`` where the loss is all there is.
        general_measure: ``ndcg@10`` or ``loss`` of labelled retain examples, ``agreement`` with the
            base or ``divergence`` from it on text without labels; ``None`` without either.
        more_is_better: of that measure.
        max_drop: that was allowed of it.
        verdict: what was chosen and why.
        points: all that were measured on the mixed model: those of the curve by their share of the
            way from the base, then those beside it.
        places, general_places: where each example came from.
        changes: the queries whose ranking changed most from the base to the choice.
        forwards: cost in passes over the examples; a backward counts as two.
        mixes: how often the model was mixed anew.
        seconds: wall time.
        interrupted: stopped by Ctrl-C; the weights are the best found until then.
        compute_dtype: of the model that was measured.
        notes: what the search cannot know, and how to tell it.
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
        """The point of this name; a KeyError where there is none."""
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
        """The points on the way from the base, in their order."""
        return tuple(point for point in self.points if point.share is not None)

    @property
    def gained(self) -> bool:
        """Whether it is anything but the base."""
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
