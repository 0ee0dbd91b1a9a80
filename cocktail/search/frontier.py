"""The price: what a mix gains on the target against what it loses on the retain examples."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cocktail.errors import RecipeError
from cocktail.search.mixture import Weights, simplex_vertex
from cocktail.search.objective import Measurement, MixObjective, Values
from cocktail.search.result import Frontier, FrontierPoint
from cocktail.search.selection import Candidate, Interval, Verdict, paired_interval
from cocktail.search.strategies import on_simplex

if TYPE_CHECKING:
    from cocktail.search.search import Search

STEPS = 10
"""Of the way from the base to what the target alone would choose."""


def trace(search: Search, verdict: Verdict) -> tuple[Frontier, Measurement]:
    """Measure mixes on target and retain examples, and choose under the limit.

    Measured are the ingredients, the candidates, and the way from the base to the candidate that
    the target alone would choose, in ``STEPS`` steps. The limit is the base's own value on the
    retain examples, less ``max_drop``. The target's choice stays if it is within; else the best on
    the target among those that are; else the one that misses by least.

    Returns:
        The frontier, and what the chosen point does on the target's examples.

    Raises:
        RecipeError: the metric is to be compared and this kind has none.
    """
    options, retain_task = search.options, search.bench.retain
    if retain_task is None:
        raise RecipeError("no retain examples given - a frontier has two sides - pass --retain")
    if options.retain_by == "metric" and retain_task.metric is None:
        raise RecipeError(
            "retain_by is metric - this kind of model has a loss alone - use --retain-by loss"
        )
    by_metric = options.retain_by == "metric"
    retain = MixObjective(search.bench.mixture, retain_task)
    target = MixObjective(search.bench.mixture, search.task)
    target.share_rows(search.objective)
    places = _places(search, verdict)  # the base first
    measured = [target.measure(weights) for _, _, weights in places]
    sides = (
        [_values(found, by_metric) for found in measured],
        [_values(retain.measure(weights), by_metric) for _, _, weights in places],
    )
    on_target, on_retain = (
        [_against(values, side[0], options.seed) for values in side] for side in sides
    )
    points = [
        FrontierPoint(name, tuple(weights.tolist()), on_target[i], on_retain[i], role)
        for i, (name, role, weights) in enumerate(places)
    ]
    wanted = search.weights_of(verdict.chosen)
    frontier = choose_point(
        points,
        next(point.name for point in points if np.allclose(point.weights, wanted)),
        measure=(retain_task.metric or "metric") if by_metric else "loss",
        more_is_better=by_metric,
        max_drop=options.max_drop,
    )
    return frontier, measured[frontier.chosen]


def choose_point(
    points: list[FrontierPoint],
    wanted: str,
    *,
    measure: str,
    more_is_better: bool,
    max_drop: float,
) -> Frontier:
    """The wanted point if the limit allows it, else the best on the target that it does allow.

    Args:
        points: one of them in the role of the base.
        wanted: name of the point that the target alone would choose.
        max_drop: how much worse than the base a point may be on the retain examples.
    """
    sign = -1.0 if more_is_better else 1.0  # of a value of which less is better
    base = next(point for point in points if point.role == "base")
    limit = base.retain.mean + sign * max_drop
    excess = [sign * (point.retain.mean - limit) for point in points]
    within = [i for i, over in enumerate(excess) if over <= 1e-9]
    chosen = next(i for i, point in enumerate(points) if point.name == wanted)
    missed_by = 0.0
    if not within:
        chosen = int(np.argmin(excess))
        missed_by = float(excess[chosen])
    elif chosen not in within:
        chosen = min(within, key=lambda i: sign * points[i].target.mean)
    return Frontier(measure, limit, tuple(points), chosen, missed_by)


def _places(search: Search, verdict: Verdict) -> list[tuple[str, str, Weights]]:
    """Names, roles and weights to measure; the same weights are measured once, under one name."""
    candidates = {candidate.name: candidate for candidate in search.candidates}
    base = simplex_vertex(search.options.base, search.size)
    end = np.array(_end(candidates, verdict).weights)
    found: list[tuple[str, str, Weights]] = [("base", "base", base)]
    found += [(c.name, "candidate", np.array(c.weights)) for c in search.candidates]
    for i, name in enumerate(search.bench.mixture.names):
        found.append((name, "ingredient", simplex_vertex(i, search.size)))
    for step in range(1, STEPS):
        share = step / STEPS
        way = on_simplex((1 - share) * base + share * end)
        found.append((f"{share:.1f} of the way from the base", "step", way))
    unique: dict[bytes, tuple[str, str, Weights]] = {}
    # Of equal weights the base keeps its name, then the verdict's choice.
    for place in sorted(found, key=lambda place: (place[1] != "base", place[0] != verdict.chosen)):
        unique.setdefault(np.round(place[2], 9).tobytes(), place)
    return list(unique.values())


def _end(candidates: dict[str, Candidate], verdict: Verdict) -> Candidate:
    """Where the way from the base leads: the choice, or if that is the base, away from it."""
    for name in (verdict.chosen, verdict.leader, "screened", "uniform"):
        if candidates[name].weights != candidates["base"].weights:
            return candidates[name]
    return candidates["base"]


def _values(measured: Measurement, by_metric: bool) -> Values:
    if by_metric and measured.metrics is not None:
        return measured.metrics
    return measured.losses


def _against(values: Values, base: Values, seed: int) -> Interval:
    """The mean, and how sure its distance from the base's is: examples cancel out in pairs."""
    difference = paired_interval(values - base, seed=seed)
    start = float(base.mean())
    return Interval(float(values.mean()), start + difference.low, start + difference.high)
