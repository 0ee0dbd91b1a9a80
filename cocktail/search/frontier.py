"""The price: what a mix gains on the target against what it loses on the retain examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from cocktail.errors import RecipeError
from cocktail.measure.bench import Bench
from cocktail.measure.mixture import Weights, simplex_vertex
from cocktail.search.objective import Measurement, MixObjective, Values
from cocktail.search.options import SearchOptions
from cocktail.search.result import ROUNDING, Frontier, FrontierPoint
from cocktail.search.strategies import on_simplex
from cocktail.search.verdict import EQUAL, Candidate, Interval, Verdict, paired_interval

STEPS = 10
"""Of the way from the base to what the target alone would choose."""
HALVINGS = 3
"""Of the step that crosses the limit: to an eightieth of the way."""

Place = tuple[str, str, Weights]
"""Name, role and weights of a mix."""


def trace(
    bench: Bench,
    objective: MixObjective,
    candidates: Sequence[Candidate],
    options: SearchOptions,
    verdict: Verdict,
) -> tuple[Frontier, Measurement]:
    """Measure mixes on target and retain examples, and choose under the limit.

    Measured are the ingredients, the candidates, and the way from the base to the candidate that
    the target alone would choose, in ``STEPS`` steps. The limit is ``max_drop`` worse than the
    base's own value on the retain examples. The target's choice stays if it is within; else the
    best on the target among those that are, after ``HALVINGS`` of the step that crosses the limit;
    else the one that misses by least. Where the verdict abstained the target's examples choose
    nothing: then it is the point within that lies nearest to its choice, on the way there.

    Args:
        objective: the target's, which knows what has been run.

    Returns:
        The frontier, and what the chosen point does on the target's examples.
    """
    scales = _Scales(bench, objective, options)
    places = _places(bench.mixture.names, candidates, options.base, verdict)
    points = [scales.point(place) for place in places]  # the base first
    chosen = next(c.weights for c in candidates if c.name == verdict.chosen)
    wanted = next(i for i, point in enumerate(points) if np.allclose(point.weights, chosen))
    way = Way(points[0].weights, _end(candidates, verdict).weights)

    def choice() -> Frontier:
        return choose_point(
            points,
            wanted,
            measure=scales.measure,
            more_is_better=scales.by_metric,
            max_drop=options.max_drop,
            blind=verdict.abstained,
        )

    frontier = choice()
    for _ in range(HALVINGS):
        share = None if frontier.chosen == wanted else halfway_across(frontier, way)
        if share is None:
            break
        points.append(scales.point(way.step(share)))
        frontier = choice()
    return frontier, scales.measured[frontier.chosen]


@dataclass(frozen=True)
class Way:
    """Straight from the base's weights to where the target leads."""

    base: tuple[float, ...]
    end: tuple[float, ...]

    def step(self, share: float) -> Place:
        """The mix at this share of the way."""
        weights = (1 - share) * np.array(self.base) + share * np.array(self.end)
        return f"{share:.4g} of the way from the base", "step", on_simplex(weights)

    def reach(self, point: FrontierPoint) -> float | None:
        """The share of the way at which a point lies; ``None`` beside the way and beyond it."""
        weights, base = np.array(point.weights), np.array(self.base)
        line = np.array(self.end) - base
        length = float(line @ line)
        share = float((weights - base) @ line) / length if length else 0.0
        on_it = -ROUNDING <= share <= 1 + ROUNDING
        return share if on_it and np.allclose(weights, base + share * line) else None


class _Scales:
    """Measures mixes on both sides, each against the base, which is measured first."""

    def __init__(self, bench: Bench, objective: MixObjective, options: SearchOptions) -> None:
        retain = bench.retain
        if retain is None:
            raise RecipeError("no retain examples given - a frontier has two sides - pass --retain")
        self.by_metric = options.retain_by == "metric"
        self.measure = (retain.metric or "metric") if self.by_metric else "loss"
        self.measured: list[Measurement] = []
        self._seed = options.seed
        self._base: tuple[Values, Values] | None = None
        self._target = MixObjective(bench.mixture, bench.task)
        self._target.share_rows(objective)
        self._retain = MixObjective(bench.mixture, retain)

    def point(self, place: Place) -> FrontierPoint:
        name, role, weights = place
        found = self._target.measure(weights)
        sides = (self._values(found), self._values(self._retain.measure(weights)))
        self.measured.append(found)
        self._base = self._base or sides
        target, retain = (
            _against(values, base, self._seed)
            for values, base in zip(sides, self._base, strict=True)
        )
        return FrontierPoint(name, tuple(weights.tolist()), target, retain, role)

    def _values(self, measured: Measurement) -> Values:
        if self.by_metric and measured.metrics is not None:
            return measured.metrics
        return measured.losses


def halfway_across(frontier: Frontier, way: Way) -> float | None:
    """The middle of the step of the way that crosses the limit, as a share; ``None`` if none does.

    Where several do, of the one that leaves nearest to the chosen point.
    """
    chosen = frontier.points[frontier.chosen]
    if frontier.missed_by > 0:
        return None
    reached = [(way.reach(point), point) for point in frontier.points]
    along = sorted(
        ((share, point) for share, point in reached if share is not None), key=lambda each: each[0]
    )
    crossings = [
        (_distance(point, chosen), (share + beyond) / 2)
        for (share, point), (beyond, further) in pairwise(along)
        if frontier.allows(point) and not frontier.allows(further)
    ]
    return min(crossings)[1] if crossings else None


def _distance(one: FrontierPoint, other: FrontierPoint) -> float:
    return float(np.abs(np.array(one.weights) - np.array(other.weights)).sum())


def choose_point(
    points: list[FrontierPoint],
    wanted: int,
    *,
    measure: str,
    more_is_better: bool,
    max_drop: float,
    blind: bool = False,
) -> Frontier:
    """The wanted point if the limit allows it, else the best on the target that it does allow.

    Args:
        points: one of them in the role of the base.
        wanted: index of the point that the target alone would choose.
        max_drop: how much worse than the base a point may be on the retain examples.
        blind: the target says nothing: of what the limit allows, take what is nearest to the
            wanted point.
    """
    sign = -1.0 if more_is_better else 1.0  # of a value of which less is better
    base = next(point for point in points if point.role == "base")
    limit = base.retain.mean + sign * max_drop
    excess = [sign * (point.retain.mean - limit) for point in points]
    within = [i for i, over in enumerate(excess) if over <= ROUNDING]
    chosen, missed_by = wanted, 0.0
    if not within:
        chosen = int(np.argmin(excess))
        missed_by = float(excess[chosen])
    elif wanted not in within and blind:
        chosen = min(within, key=lambda i: _distance(points[i], points[wanted]))
    elif wanted not in within:
        chosen = min(within, key=lambda i: sign * points[i].target.mean)
    return Frontier(measure, limit, tuple(points), chosen, missed_by)


def _places(
    names: Sequence[str], candidates: Sequence[Candidate], base_index: int, verdict: Verdict
) -> list[Place]:
    """Names, roles and weights to measure; the same weights are measured once, under one name."""
    base = simplex_vertex(base_index, len(names))
    found: list[Place] = [("base", "base", base)]
    found += [(c.name, "candidate", np.array(c.weights)) for c in candidates]
    taken = {place[0] for place in found}
    for i, name in enumerate(names):
        # A folder may be called "base" or "prior" and be neither.
        shown = f"{name} (ingredient)" if name in taken else name
        found.append((shown, "ingredient", simplex_vertex(i, len(names))))
    way = Way(tuple(base.tolist()), _end(candidates, verdict).weights)
    found += [way.step(step / STEPS) for step in range(1, STEPS)]
    unique: dict[bytes, Place] = {}
    # Of equal weights the base keeps its name, then the verdict's choice.
    for place in sorted(found, key=lambda place: (place[1] != "base", place[0] != verdict.chosen)):
        unique.setdefault(np.round(place[2], 9).tobytes(), place)
    return list(unique.values())


def _end(candidates: Sequence[Candidate], verdict: Verdict) -> Candidate:
    """Where the way from the base leads: the choice, or if that is the base, away from it."""
    named = {candidate.name: candidate for candidate in candidates}
    for name in (verdict.chosen, verdict.leader, EQUAL):
        if named[name].weights != named["base"].weights:
            return named[name]
    return named["base"]


def _against(values: Values, base: Values, seed: int) -> Interval:
    """The mean, and how sure its distance from the base's is: examples cancel out in pairs."""
    difference = paired_interval(values - base, seed=seed)
    start = float(base.mean())
    return Interval(float(values.mean()), start + difference.low, start + difference.high)
