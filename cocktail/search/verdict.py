"""What was chosen, in plain words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cocktail.search.curve import Point
from cocktail.search.intervals import CONFIDENCE, Interval
from cocktail.search.rule import Choice

Outcome = Literal["mix", "fine-tune", "base", "limited", "ingredient", "asked", "stopped"]
PLAIN = "plain average"


@dataclass(frozen=True)
class Verdict:
    """What was chosen and why.

    Attributes:
        chosen: name of a point.
        outcome: ``mix``, ``fine-tune`` (the end of the curve) or ``base`` (nothing was gained);
            ``limited`` where the target alone would have gone further; ``ingredient`` where a mix
            off the curve is significantly better; ``asked`` for a strategy that was named;
            ``stopped`` after Ctrl-C.
        headline: one sentence that says what to do.
        reason: one sentence that says why, with figures.
        held_out: difference of the target loss from the base's, with each example at the point that
            the others would have chosen; ``None`` where there are too few examples or the rule
            chose nothing.
    """

    chosen: str
    outcome: Outcome
    headline: str
    reason: str
    held_out: Interval | None = None


def describe(
    points: Sequence[Point], choice: Choice, *, measure: str | None, max_drop: float, two: bool,
    held_out: Interval | None,
) -> Verdict:  # fmt: skip
    """The verdict on the rule's choice.

    Args:
        points: the points that it chose from.
        measure: the general measure; ``None`` where nothing is retained.
        two: whether there are only two ingredients, the base and the fine-tune.
    """
    chosen, wanted = points[choice.place], points[choice.wanted]
    what = "fine-tune" if two else "mix at the end of the curve"
    headlines = {
        "base": "This is the base: nothing was gained.",
        "fine-tune": f"Take the {what}.",
        "mix": f"Take {_named(chosen, two)}.",
        "limited": f"Take {_named(chosen, two)}: more of the {what} loses too much elsewhere.",
    }
    if choice.place == 0 and choice.outcome == "limited":
        headlines["limited"] = (
            f"This is the base: any share of the {what} loses too much elsewhere."
        )
    reason = _figures(chosen, measure)
    if choice.outcome == "base":
        other = min(points[1:], key=lambda point: point.loss.mean.mean, default=chosen)
        reason = f"the next best is {_named(other, two)}: {_figures(other, None)}"
    elif choice.outcome == "limited":
        found = _figures(wanted, measure)
        reason = (
            f"{reason}; the target alone would choose {_named(wanted, two)}, which exceeds the "
            f"limit of {max_drop:g} ({found})"
        )
    return Verdict(chosen.name, choice.outcome, headlines[choice.outcome], reason, held_out)


def off_the_curve(point: Point, better: Interval, measure: str | None) -> Verdict:
    """The verdict for a mix off the curve that is significantly better than all on it."""
    return Verdict(
        point.name,
        "ingredient",
        f"Take {point.name}.",
        f"its target loss is lower by {better} than at the best point of the curve; "
        f"{_figures(point, measure)}",
    )


def asked_for(point: Point, strategy: str, wanted: Point, measure: str | None) -> Verdict:
    """The verdict where a strategy was named: its weights, or as near as the limit allows."""
    reason = f"{strategy} was asked for; {_figures(point, measure)}"
    if point is not wanted:
        reason += f"; its own weights exceed the limit ({_figures(wanted, measure)})"
    headline = f"Take {point.name}."
    worse = point.metric is not None and point.metric.difference.below_zero
    if worse or point.loss.difference.above_zero:
        headline = f"{point.name}, as asked for, does worse than the base on these examples."
    return Verdict(point.name, "asked", headline, reason)


def stopped(points: Sequence[Point]) -> Verdict:
    """The verdict after Ctrl-C: the mix with the lowest loss so far."""
    best = min(points, key=lambda point: point.loss.mean.mean)
    return Verdict(
        best.name,
        "stopped",
        f"Stopped early; {best.name} had the lowest target loss so far.",
        "what is lost elsewhere was not checked",
    )


def _named(point: Point, two: bool) -> str:
    if point.name in ("base", "fine-tune"):
        return f"the {point.name}"
    if point.share is None:
        return point.name
    share = f"{point.share:.3g} of the {'fine-tune' if two else 'way from the base'}"
    return f"{point.name} ({share})" if point.name in (PLAIN, "lm-cocktail") else share


def _figures(point: Point, measure: str | None) -> str:
    if point.name == "base":
        return "it is what the others are compared with"
    parts = []
    if point.metric is not None:
        parts.append(f"against the base, its target NDCG@10 changes by {point.metric.difference}")
    parts.append(f"its target loss by {point.loss.difference}")
    if point.metric is None:
        parts[0] = f"against the base, its target loss changes by {point.loss.difference}"
    if measure is not None and point.general is not None:
        parts.append(f"the general {measure} by {point.general.difference}")
    return ", ".join(parts) + f" ({CONFIDENCE:.0%} intervals)"
