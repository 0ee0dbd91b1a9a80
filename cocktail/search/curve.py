"""The curve: mixes from the base to the fine-tune, each measured on target and general examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from cocktail.measure.agreement import Agreement
from cocktail.measure.bench import Bench
from cocktail.measure.mixture import Weights, simplex_vertex
from cocktail.measure.tasks.task import Values
from cocktail.search.intervals import Interval, bootstrap_interval
from cocktail.search.objective import MixObjective
from cocktail.search.options import SearchOptions

STEPS = 10
"""The number of steps from the base to the end of the curve."""
ALIKE = 1e-9


@dataclass(frozen=True)
class Side:
    """One measure of a mix on one set of examples.

    Attributes:
        values: one for each example, in the order given.
        mean: their mean, with its interval over the examples.
        difference: the paired difference of the mean from the base's.
    """

    values: Values
    mean: Interval
    difference: Interval

    def to_dict(self) -> dict[str, Any]:
        return {
            **self.mean.to_dict(),
            "difference": self.difference.to_dict(),
            "each": self.values.tolist(),
        }


@dataclass(frozen=True)
class Point:
    """A mix that was measured.

    Attributes:
        name: ``base``, ``fine-tune``, ``plain average``, ``lm-cocktail``, an ingredient, a share.
        weights: one for each ingredient, in order.
        share: the position from the base, 0, to the end of the curve, 1; ``None`` off the curve.
        loss, metric: on the target; the metric is ``None`` where there is only a loss.
        general: by :attr:`SearchResult.general_measure`; ``None`` without retain examples.
    """

    name: str
    weights: tuple[float, ...]
    share: float | None
    loss: Side
    metric: Side | None
    general: Side | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "name": self.name,
            "weights": list(self.weights),
            "share": self.share,
            "loss": self.loss.to_dict(),
            "metric": None if self.metric is None else self.metric.to_dict(),
            "general": None if self.general is None else self.general.to_dict(),
        }


class Gauge:
    """Measures mixes on both sides and compares them with the base, which is measured first.

    Attributes:
        measure: name of the general measure; ``None`` without retain examples.
        more_is_better: whether more of that measure is better.
    """

    def __init__(
        self, bench: Bench, objective: MixObjective, options: SearchOptions, base: Weights
    ) -> None:
        self._bench = bench
        self._objective = objective
        self._seed = options.seed
        self._agreement: Agreement | None = None
        self._retained: MixObjective | None = None
        self._by_metric = False
        self.measure: str | None = None
        self.more_is_better = False
        self._of_base: dict[str, Values] = {}
        if bench.retain is None:
            return
        if bench.labelled:
            self._retained = MixObjective(bench.mixture, bench.retain)
            self._by_metric = bench.retain.metric is not None and options.retain_by != "loss"
            self.measure = (bench.retain.metric or "loss") if self._by_metric else "loss"
            self.more_is_better = self._by_metric
        else:
            self._agreement = Agreement(bench.mixture, bench.retain, base)
            self.measure = self._agreement.name
            self.more_is_better = self._agreement.more_is_better

    def point(self, name: str, weights: Weights) -> Point:
        """Measure a mix; the first one is the base."""
        found = self._objective.measure(weights)
        order = self._bench.given_order
        loss = self._side("loss", found.losses, order)
        metric = None if found.metrics is None else self._side("metric", found.metrics, order)
        values = self._general(weights)
        general = None if values is None else self._side("general", values, range(len(values)))
        return Point(name, tuple(weights.tolist()), None, loss, metric, general)

    def scores(self, weights: Weights) -> dict[str, Tensor]:
        """For each side, (N, G) scores of what each example ranks, for a mix already measured."""
        everything = range(len(self._bench.task.places))
        found = {"target": self._bench.task.groups(self._objective.rows(weights), everything)}
        if self._agreement is not None:
            found["general"] = self._agreement.scores(weights)
        elif self._retained is not None:
            task = self._retained.task
            rows = self._retained.rows(weights)
            found["general"] = task.groups(rows, range(len(task.places)))
        return found

    def _general(self, weights: Weights) -> Values | None:
        if self._agreement is not None:
            return self._agreement.values(weights)
        if self._retained is None:
            return None
        found = self._retained.measure(weights)
        return found.metrics if self._by_metric and found.metrics is not None else found.losses

    def _side(self, name: str, values: Values, given_order: Sequence[int]) -> Side:
        base = self._of_base.setdefault(name, values)
        return Side(
            values[list(given_order)],
            bootstrap_interval(values, seed=self._seed),
            bootstrap_interval(values - base, seed=self._seed),
        )


@dataclass(frozen=True)
class Way:
    """The straight line from the base's weights to those at the end of the curve."""

    base: Weights
    end: Weights

    def at(self, share: float) -> Weights:
        weights: Weights = (1 - share) * self.base + share * self.end
        return weights

    def share(self, weights: Weights) -> float | None:
        """The position of these weights on the line; ``None`` beside it or beyond its ends."""
        line = self.end - self.base
        length = float(line @ line)
        share = float((weights - self.base) @ line) / length if length else 0.0
        on_it = -ALIKE <= share <= 1 + ALIKE
        return share if on_it and np.allclose(weights, self.at(share), atol=ALIKE) else None

    def steps(self) -> list[float]:
        """The shares at ``STEPS`` steps, including both ends."""
        return [step / STEPS for step in range(STEPS + 1)]


def vertices(size: int) -> list[Weights]:
    """K one-hot weights."""
    return [simplex_vertex(i, size) for i in range(size)]
