"""The search itself: measure the curve from the base, and choose a point of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from cocktail.errors import counted
from cocktail.measure.bench import Bench
from cocktail.measure.mixture import Weights
from cocktail.measure.tasks.task import Values
from cocktail.search.changes import Change, changed_rankings
from cocktail.search.curve import Gauge, Point, Way, vertices
from cocktail.search.direction import bagged_best
from cocktail.search.gradient import descend
from cocktail.search.half_precision import compute_in_bf16
from cocktail.search.intervals import bootstrap_interval
from cocktail.search.lm_cocktail import softmax_weights
from cocktail.search.objective import MixObjective
from cocktail.search.options import SearchOptions
from cocktail.search.result import SearchResult
from cocktail.search.rule import (
    FEWEST,
    allowed_points,
    choose_point,
    held_out_values,
    keeps,
)
from cocktail.search.verdict import PLAIN, Verdict, asked_for, describe, off_the_curve, stopped

BLIND = (
    "the cost elsewhere is unknown: give general examples (--retain FILE), or any general text "
    "without labels (--retain-text FILE)"
)


class Search:
    """One search over one set of ingredients and examples.

    Args:
        observe: called with the weights and the loss of every mix that is measured.
    """

    def __init__(
        self,
        bench: Bench,
        options: SearchOptions,
        observe: Callable[[Weights, float], None] | None = None,
    ) -> None:
        self.bench = bench
        self.options = options
        self.size = len(bench.mixture.plan.ingredients)
        self.objective = MixObjective(bench.mixture, bench.task, observe=observe)
        self.ends = vertices(self.size)
        self.base = self.ends[options.base]
        self.points: list[Point] = []
        self.notes: list[str] = [] if bench.retain is not None else [BLIND]
        self.started = time.perf_counter()

    def run(self) -> SearchResult:
        """Measure, and choose.

        Raises:
            NonFiniteError: an ingredient's or a mix's loss is not finite.
            KeyboardInterrupt: fewer than two mixes were measured before it.
        """
        interrupted = False
        try:
            self._settle_dtype()
            self._measure_the_trivial()
            wanted = self._asked_for()
            self._measure_the_way(wanted)
            verdict = self._verdict(wanted)
        except KeyboardInterrupt:
            if len(self.points) < 2:
                raise
            interrupted, verdict = True, stopped(self.points)
        return self._result(verdict, interrupted)

    def _settle_dtype(self) -> None:
        if self.options.compute_dtype == "auto" and self.options.strategy == "auto":
            said = compute_in_bf16(self.bench, self.objective, self.base)
            self.notes += [] if said is None else [said]

    def _measure_the_trivial(self) -> None:
        """Measure the base, the others, their plain average, and LM-Cocktail's mix."""
        self.gauge = Gauge(self.bench, self.objective, self.options, self.base)
        self._add("base", self.base)
        for i, name in enumerate(self.bench.mixture.names):
            # A folder may share its name with a mix.
            self._add("fine-tune" if self.size == 2 else f"{name} (ingredient)", self.ends[i])
        self._add(PLAIN, np.full(self.size, 1 / self.size))
        rows = [self.objective.rows(end) for end in self.ends]
        self.softmax = softmax_weights(self.bench, rows, self.options)
        self._add("lm-cocktail", self.softmax)

    def _asked_for(self) -> Weights | None:
        """The weights of the strategy that was named; ``None`` where the rule decides."""
        if self.options.strategy == "gradient":
            found = descend(self.objective, np.full(self.size, 1 / self.size))
            self._add("gradient", found)
            return found
        return self.softmax if self.options.strategy == "lm-cocktail" else None

    def _measure_the_way(self, wanted: Weights | None) -> None:
        """Measure the curve from the base to the fine-tune, the bagged best of several, or the
        mix that was asked for."""
        way = Way(self.base, self._end(wanted))
        for share in way.steps():
            self._add(f"{share:.0%} of the way", way.at(share))
        self.points = [
            replace(point, share=way.share(np.array(point.weights))) for point in self.points
        ]
        self.points.sort(key=lambda point: (point.share is None, point.share or 0.0))

    def _end(self, wanted: Weights | None) -> Weights:
        if self.size == 2:
            return self.ends[1 - self.options.base]
        if wanted is not None and not np.allclose(wanted, self.base):
            return wanted
        tuned = [
            point
            for point in self.points
            if max(point.weights) == 1 and point.weights[self.options.base] == 0
        ]
        weights = np.array([point.weights for point in tuned])
        return bagged_best(self._target(tuned), weights, seed=self.options.seed)

    def _add(self, name: str, weights: Weights) -> None:
        """Measure a mix, unless that has been done already."""
        if not any(np.allclose(point.weights, weights, atol=1e-9) for point in self.points):
            self.points.append(self.gauge.point(name, weights))

    def _verdict(self, wanted: Weights | None) -> Verdict:
        measure, drop = self.gauge.measure, self.options.max_drop
        curve = [point for point in self.points if point.share is not None]
        shares = [point.share or 0.0 for point in curve]
        target, general = self._target(curve), self._general(curve)
        if wanted is not None:
            allowed = allowed_points(general, drop, len(curve))
            away = np.abs(np.array([point.weights for point in curve]) - wanted).max(axis=1)
            aim = int(away.argmin())
            place = max(i for i in range(aim + 1) if allowed[i])
            return asked_for(curve[place], self.options.strategy, curve[aim], measure)
        if len(target) < FEWEST:
            examples = counted(len(target), "example")
            self.notes.append(f"{examples} cannot decide: the base is kept")
            target = np.zeros_like(target)
        seed = self.options.seed
        choice = choose_point(shares, target, general, max_drop=drop, seed=seed)
        held_out = None
        if len(target) > FEWEST:
            found = held_out_values(shares, target, general, max_drop=drop, seed=seed)
            held_out = bootstrap_interval(found - target[:, 0], seed=seed)
        better = self._off_the_curve(curve[choice.place])
        if better is not None:
            return better
        return describe(
            curve, choice, measure=measure, max_drop=drop, two=self.size == 2, held_out=held_out
        )

    def _off_the_curve(self, best: Point) -> Verdict | None:
        """The verdict for a mix off the curve that is significantly better than the best on it."""
        others = [point for point in self.points if point.share is None]
        if not others or len(best.loss.values) < FEWEST:
            return None
        found = []
        for point in others:
            general = self._general([self.points[0], point])
            within = general is None or keeps(general[:, 0], general[:, 1], self.options.max_drop)
            values = self._target([point, best])
            gain = bootstrap_interval(values[:, 1] - values[:, 0], seed=self.options.seed)
            if within and gain.above_zero:
                found.append((gain.mean, point, gain))
        if not found:
            return None
        _, point, gain = max(found, key=lambda each: each[0])
        return off_the_curve(point, gain, self.gauge.measure)

    def _target(self, points: Sequence[Point]) -> Values:
        """(N, S) target losses, in an order that does not depend on the file's."""
        order = list(self.bench.order)
        losses: Values = np.stack([point.loss.values[order] for point in points], axis=1)
        return losses

    def _general(self, points: Sequence[Point]) -> Values | None:
        """(M, S) general values of which less is better."""
        sign = -1 if self.gauge.more_is_better else 1
        found = [sign * point.general.values for point in points if point.general is not None]
        return np.stack(found, axis=1) if found else None

    def _result(self, verdict: Verdict, interrupted: bool) -> SearchResult:
        mixture = self.bench.mixture
        chosen = next(point for point in self.points if point.name == verdict.chosen)
        changes: list[Change] = []
        if mixture.plan.kind.ranks and chosen.weights[self.options.base] < 1 and not interrupted:
            ends = (self.base, np.array(chosen.weights))
            changes = changed_rankings(self.bench, *map(self.gauge.scores, ends))
        return SearchResult(
            models=tuple(mixture.names),
            model_type=mixture.plan.kind.name,
            base=self.options.base,
            strategy=self.options.strategy,
            seed=self.options.seed,
            metric=self.bench.task.metric,
            general_measure=self.gauge.measure,
            more_is_better=self.gauge.more_is_better,
            max_drop=self.options.max_drop,
            verdict=verdict,
            points=tuple(self.points),
            places=tuple(self.bench.task.places[i] for i in self.bench.given_order),
            general_places=tuple(() if self.bench.retain is None else self.bench.retain.places),
            changes=tuple(changes),
            forwards=mixture.cost.forwards,
            mixes=mixture.cost.mixes,
            seconds=time.perf_counter() - self.started,
            interrupted=interrupted,
            compute_dtype=self.options.model_dtype,
            notes=tuple(self.notes),
        )
