"""Pictures of results; never reads models."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from cocktail.search.result import Frontier, FrontierPoint, SearchResult
from cocktail.search.verdict import CONFIDENCE, Candidate, Interval, paired_interval

# Okabe and Ito's colours, which stay apart for colour-blind eyes.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
_DARK = ("#0072B2", "#D55E00")
_GREY = "#777777"
_CHOSEN = "#D55E00"
_NAME_SIZE = 8.0
_RIGHT = [(8.0, "left")]


def draw_weights(result: SearchResult, path: Path) -> None:
    """Draw every candidate's weights beside its loss, in-sample and held-out with its interval.

    Args:
        path: a PNG file, overwritten.
    """
    count = len(result.candidates)
    figure = Figure(figsize=(11, 1.9 + 0.5 * count), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    _draw_shares(left, result)
    _draw_losses(right, result)
    left.set_yticks(range(count), [_label(c, result.verdict.chosen) for c in result.candidates])
    left.set_ylim(count - 0.4, -0.6)
    handles, labels = left.get_legend_handles_labels()
    more_handles, more_labels = right.get_legend_handles_labels()
    figure.legend(
        handles + more_handles, labels + more_labels, loc="outside lower center",
        ncols=min(6, len(labels) + 2), frameon=False, fontsize=9,
    )  # fmt: skip
    figure.suptitle(f"Chosen: {result.verdict.chosen}", fontsize=11)
    figure.savefig(path, dpi=150)


def _draw_shares(axes: Axes, result: SearchResult) -> None:
    """A bar for each candidate, divided by its weights."""
    places = np.arange(len(result.candidates))
    start = np.zeros(len(places))
    for i, name in enumerate(short_names(result.models)):
        shares = np.array([candidate.weights[i] for candidate in result.candidates])
        colour = _COLOURS[i % len(_COLOURS)]
        axes.barh(places, shares, left=start, color=colour, label=name, height=0.62)
        for place, (share, begin) in enumerate(zip(shares, start, strict=True)):
            if share >= 0.08:
                axes.text(
                    begin + share / 2, place, f"{share:.2f}", ha="center", va="center", fontsize=8,
                    color="white" if colour in _DARK else "black",
                )  # fmt: skip
        start += shares
    axes.set_xlim(0, 1)
    axes.set_xlabel("mixing weight")
    axes.spines[["top", "right"]].set_visible(False)


def _draw_losses(axes: Axes, result: SearchResult) -> None:
    """Each candidate's loss in-sample, and held-out with its interval."""
    for place, candidate in enumerate(result.candidates):
        colour = _CHOSEN if candidate.name == result.verdict.chosen else _COLOURS[0]
        if candidate.held_out is not None:
            held_out = paired_interval(candidate.held_out.losses, seed=result.seed)
            axes.errorbar(
                held_out.mean, place, xerr=_reach(held_out), fmt="o", color=colour, capsize=3
            )
        axes.plot(candidate.measured.loss, place, "o", color=colour, mfc="white", zorder=3)
    axes.plot([], [], "o", mfc="white", color=_GREY, label="in-sample")
    axes.errorbar([], [], xerr=[], fmt="o", color=_GREY, label=f"held-out, {CONFIDENCE:.0%}")
    axes.set_xlabel(f"loss, {len(result.places)} examples (less is better)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def draw_frontier(result: SearchResult, path: Path) -> None:
    """Draw target against retain: the way from the base, candidates, ingredients, the limit.

    Args:
        result: with a frontier.
        path: a PNG file, overwritten.
    """
    frontier = result.frontier
    if frontier is None:
        return
    figure = Figure(figsize=(8, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    _draw_way(axes, frontier)
    styles = {
        "candidate": ("s", _COLOURS[2], "candidate"),
        "ingredient": ("D", _COLOURS[3], "ingredient"),
        "base": ("^", "black", "base"),
    }
    for role, (marker, colour, label) in styles.items():
        _draw_points(axes, frontier, role, marker, colour, label)
    for count, i in enumerate(frontier.neighbours):
        point = frontier.points[i]
        axes.plot(
            point.retain.mean, point.target.mean, "o", ms=14, mfc="none", mec=_CHOSEN, mew=1,
            label="_" if count else "neighbour",
        )  # fmt: skip
    chosen = frontier.points[frontier.chosen]
    _bars(axes, chosen, _CHOSEN)
    axes.plot(
        chosen.retain.mean, chosen.target.mean, "*", ms=17, color=_CHOSEN, label="chosen", zorder=5
    )
    axes.axvline(frontier.limit, color=_GREY, linestyle="--", linewidth=1, label="limit")
    better = "less" if frontier.measure == "loss" else "more"
    axes.set_xlabel(f"retain {frontier.measure} ({better} is better)")
    axes.set_ylabel(f"target {frontier.measure} ({better} is better)")
    axes.set_title(
        f"Chosen: {chosen.name}\nbars: {CONFIDENCE:.0%} intervals of the difference from the base",
        fontsize=10, loc="left",
    )  # fmt: skip
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.margins(0.12)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    figure.draw_without_rendering()  # where points stand is known once the layout is
    _name_points(axes, frontier, {role: colour for role, (_, colour, _) in styles.items()})
    figure.savefig(path, dpi=150)


def short_names(models: tuple[str, ...]) -> list[str]:
    """The ends of paths or Hub ids, as long as it takes to tell them apart."""
    for parts in range(1, 1 + max(len(Path(model).parts) for model in models)):
        names = ["/".join(Path(model).parts[-parts:]) for model in models]
        if len(set(names)) == len(set(models)):
            break
    return names


def _label(candidate: Candidate, chosen: str) -> str:
    return f"{candidate.name}  *" if candidate.name == chosen else candidate.name


def _reach(interval: Interval) -> list[list[float]]:
    """How far the interval goes below and above its mean; nothing where it is unbounded."""
    reach = [interval.mean - interval.low, interval.high - interval.mean]
    return [[side] if np.isfinite(side) else [0.0] for side in reach]


def _draw_way(axes: Axes, frontier: Frontier) -> None:
    base = np.array(next(point.weights for point in frontier.points if point.role == "base"))
    steps = [np.array(point.weights) for point in frontier.points if point.role == "step"]
    line = max((step - base for step in steps), key=np.linalg.norm, default=np.zeros_like(base))
    shares = {point: (np.array(point.weights) - base) @ line for point in frontier.points}
    along = [
        point
        for point in sorted(shares, key=lambda point: shares[point])
        if shares[point] >= 0
        and np.allclose(
            (np.array(point.weights) - base) * (line @ line), shares[point] * line, atol=1e-9
        )
    ]
    x, y = ([getattr(p, side).mean for p in along] for side in ("retain", "target"))
    axes.plot(x, y, "-", color=_COLOURS[0], linewidth=1, alpha=0.5, zorder=1)
    _draw_points(axes, frontier, "step", "o", _COLOURS[0], "step from the base")


def _draw_points(
    axes: Axes, frontier: Frontier, role: str, marker: str, colour: str, label: str
) -> None:
    points = [point for point in frontier.points if point.role == role]
    for count, point in enumerate(points):
        _bars(axes, point, colour)
        axes.plot(
            point.retain.mean, point.target.mean, marker, color=colour, ms=6,
            label="_" if count else label, zorder=3,
        )  # fmt: skip


def _name_points(axes: Axes, frontier: Frontier, colours: Mapping[str, str]) -> None:
    """Name every point but the steps, each where no name stands yet, as near as there is room."""
    points = sorted(frontier.points, key=lambda point: point.role not in colours)
    pixels = axes.transData.transform([(p.retain.mean, p.target.mean) for p in points])
    unit = axes.get_figure().dpi / 72  # type: ignore[union-attr]  # pixels of a printer's point
    taken = [Bbox([spot - 4 * unit, spot + 4 * unit]) for spot in pixels]
    for point, (x, y) in zip(points, pixels, strict=True):
        if point.role not in colours:
            break
        name = point.name if point.role != "ingredient" else Path(point.name).name
        width, height = 0.62 * _NAME_SIZE * len(name), 1.3 * _NAME_SIZE
        sides = [(8.0, "left"), (-8.0, "right")] if x > axes.bbox.x0 + width * unit else _RIGHT
        for step, (aside, align) in product((0.5, -1.0, 1.7, -2.2, 2.9, -3.4, 4.1), sides):
            corner = aside if align == "left" else aside - width
            box = Bbox.from_bounds(
                x + corner * unit, y + step * height * unit, width * unit, height * unit
            )
            if not box.count_overlaps(taken):
                break
        taken.append(box)
        axes.annotate(
            name, (point.retain.mean, point.target.mean), (aside, (step + 0.2) * height),
            textcoords="offset points", fontsize=_NAME_SIZE, color=colours[point.role], ha=align,
        )  # fmt: skip


def _bars(axes: Axes, point: FrontierPoint, colour: str) -> None:
    axes.errorbar(
        point.retain.mean, point.target.mean, xerr=_reach(point.retain), yerr=_reach(point.target),
        fmt="none", ecolor=colour, elinewidth=0.7, zorder=1,
        alpha=0.15 if point.role == "step" else 0.4,
    )  # fmt: skip
