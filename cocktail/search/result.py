"""What a search found, as values that print, serialise and draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cocktail.search.objective import Measurement, Values
from cocktail.search.verdict import Candidate, Interval, Verdict

ROUNDING = 1e-9
"""By which a value may be over a limit and still be within."""


@dataclass(frozen=True)
class FrontierPoint:
    """A mix measured on both sets.

    Attributes:
        name: of a candidate or an ingredient, or the share of the way from the base.
        target, retain: the mean on each set, with the interval of its difference from the base's,
            taken in pairs and put around the base's mean.
        role: ``base``, ``ingredient``, ``step`` (on the way) or ``candidate``.
    """

    name: str
    weights: tuple[float, ...]
    target: Interval
    retain: Interval
    role: str


@dataclass(frozen=True)
class Frontier:
    """Target against retain.

    Attributes:
        measure: ``loss`` (less is better) or the metric's name (more is better).
        limit: what ``retain`` may not be worse than.
        points: all that were measured.
        chosen: index of the point that was taken.
        missed_by: how far the nearest mix is from satisfying the limit; 0 where one does.
    """

    measure: str
    limit: float
    points: tuple[FrontierPoint, ...]
    chosen: int
    missed_by: float

    def allows(self, point: FrontierPoint) -> bool:
        """Whether the point is within the limit."""
        sign = 1.0 if self.measure == "loss" else -1.0
        return sign * (point.retain.mean - self.limit) <= ROUNDING

    @property
    def neighbours(self) -> tuple[int, ...]:
        """The points before and after the chosen one, by their value on the retain set."""
        order = sorted(range(len(self.points)), key=lambda i: self.points[i].retain.mean)
        place = order.index(self.chosen)
        return tuple(order[i] for i in (place - 1, place + 1) if 0 <= i < len(order))


@dataclass(frozen=True)
class SearchResult:
    """Weights and everything that speaks for and against them.

    Attributes:
        models: K references in the order given.
        model_type: ``reranker``, ``encoder``, ``decoder`` or ``encoder-decoder``.
        weights: K numbers that sum to 1, in the same order.
        base: index of the base.
        strategy: that was asked for.
        seed: of what is drawn.
        metric: name of the ranking metric, ``None`` where the loss is all there is.
        verdict: what was chosen and why.
        candidates: all that were measured on the mixed model; their values are in the order of
            the examples given.
        singles: each ingredient by itself, in-sample.
        places: where each example came from.
        frontier: with retain examples.
        forwards: cost in passes over the examples; a backward counts as two.
        mixes: how often the model was mixed anew.
        seconds: wall time.
        interrupted: stopped by Ctrl-C; the weights are the best found until then.
        compute_dtype: of the model that was measured.
        notes: what the budget cut off, and what else was left out.
    """

    models: tuple[str, ...]
    model_type: str
    weights: tuple[float, ...]
    base: int
    strategy: str
    seed: int
    metric: str | None
    verdict: Verdict
    candidates: tuple[Candidate, ...]
    singles: tuple[Candidate, ...]
    places: tuple[str, ...]
    frontier: Frontier | None
    forwards: float
    mixes: int
    seconds: float
    interrupted: bool
    compute_dtype: str
    notes: tuple[str, ...] = ()

    def candidate(self, name: str) -> Candidate:
        """The candidate of this name; a KeyError where there is none."""
        for candidate in self.candidates:
            if candidate.name == name:
                return candidate
        raise KeyError(name)

    @property
    def chosen(self) -> Candidate:
        return self.candidate(self.verdict.chosen)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "models": list(self.models),
            "model_type": self.model_type,
            "weights": list(self.weights),
            "base": self.models[self.base],
            "strategy": self.strategy,
            "seed": self.seed,
            "compute_dtype": self.compute_dtype,
            "chosen": self.verdict.chosen,
            "leader": self.verdict.leader,
            "abstained": self.verdict.abstained,
            "reason": self.verdict.reason,
            "difference": _interval(self.verdict.difference),
            "interrupted": self.interrupted,
            "examples": list(self.places),
            "ingredients": [_candidate(single, self.metric) for single in self.singles],
            "candidates": [_candidate(candidate, self.metric) for candidate in self.candidates],
            "frontier": None if self.frontier is None else _frontier(self.frontier),
            "cost": {
                "forward_equivalents": round(self.forwards, 3),
                "mixes": self.mixes,
                "seconds": round(self.seconds, 3),
            },
            "notes": list(self.notes),
        }


def reordered(measurement: Measurement, places: Sequence[int]) -> Measurement:
    """The same values with example ``i`` moved to position ``places[i]``."""

    def move(values: Values) -> Values:
        moved = np.empty_like(values)
        moved[list(places)] = values
        return moved

    metrics = None if measurement.metrics is None else move(measurement.metrics)
    return Measurement(move(measurement.losses), measurement.scale, measurement.penalty, metrics)


def _candidate(candidate: Candidate, metric: str | None) -> dict[str, Any]:
    return {
        "name": candidate.name,
        "weights": list(candidate.weights),
        "in_sample": _measurement(candidate.measured, metric),
        "held_out": None
        if candidate.held_out is None
        else _measurement(candidate.held_out, metric),
        "optimism": candidate.optimism,
    }


def _measurement(measured: Measurement, metric: str | None) -> dict[str, Any]:
    value: dict[str, Any] = {
        "loss": measured.loss,
        "losses": measured.losses.tolist(),
        "scale": measured.scale,
    }
    if metric is not None and measured.metrics is not None:
        value |= {
            metric: float(measured.metrics.mean()),
            f"{metric}_each": measured.metrics.tolist(),
        }
    return value


def _interval(interval: Interval | None) -> dict[str, float | None] | None:
    if interval is None:
        return None
    # JSON has no infinity, which is where the ends are that a single example gives.
    low, high = (end if np.isfinite(end) else None for end in (interval.low, interval.high))
    return {"mean": interval.mean, "low": low, "high": high}


def _frontier(frontier: Frontier) -> dict[str, Any]:
    return {
        "measure": frontier.measure,
        "limit": frontier.limit,
        "missed_by": frontier.missed_by,
        "chosen": frontier.chosen,
        "neighbours": list(frontier.neighbours),
        "points": [
            {
                "name": point.name,
                "role": point.role,
                "weights": list(point.weights),
                "target": _interval(point.target),
                "retain": _interval(point.retain),
            }
            for point in frontier.points
        ],
    }
