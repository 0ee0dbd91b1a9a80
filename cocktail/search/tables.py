"""What the report's text, picture and page have in common."""

from __future__ import annotations

from cocktail.search.curve import Point, Side
from cocktail.search.intervals import Interval
from cocktail.search.result import SearchResult

# Okabe and Ito's colours, which colour-blind readers can distinguish.
TARGET = "#0072B2"
GENERAL = "#E69F00"
CHOSEN = "#D55E00"


def point_rows(result: SearchResult) -> list[list[str]]:
    """A header and one row for each mix that was measured, the curve first."""
    three = len(result.models) > 2
    head = ["", "share", "mix", *(["weights"] if three else [])]
    if result.metric is not None:
        head += [f"target {result.metric}", "- base"]
    head += ["target loss", "- base"]
    if result.general_measure is not None:
        head += [f"general {result.general_measure}", "- base"]
    rows = [head]
    for point in result.points:
        row = ["*" if point.name == result.verdict.chosen else ""]
        row += ["" if point.share is None else f"{point.share:.2f}", point.name]
        if three:
            row.append(" ".join(f"{weight:.2f}" for weight in point.weights))
        for side in (point.metric, point.loss, point.general):
            if side is not None:
                row += [shown(side.mean), "" if point.name == "base" else str(side.difference)]
        rows.append(row)
    return rows


def target_of(point: Point) -> Side:
    """The ranking metric if there is one, otherwise the loss."""
    return point.loss if point.metric is None else point.metric


def shown(interval: Interval) -> str:
    """A mean with its interval, without signs."""
    return f"{interval.mean:.4f} [{interval.low:.4f}, {interval.high:.4f}]"
