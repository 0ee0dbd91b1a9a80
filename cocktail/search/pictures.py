"""The picture of a result, drawn without reading any model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cocktail.search.curve import Side
from cocktail.search.intervals import CONFIDENCE
from cocktail.search.result import SearchResult
from cocktail.search.tables import CHOSEN, GENERAL, TARGET, target_of

_GREY = "#777777"


def draw_curve(result: SearchResult, path: Path) -> None:
    """Draw the target and the general measure along the mixes, each against the share.

    Args:
        path: a PNG file, overwritten.
    """
    general = result.general_measure is not None
    figure = Figure(figsize=(8, 6.4 if general else 3.9), layout="constrained")
    FigureCanvasAgg(figure)
    axes = np.atleast_1d(figure.subplots(1 + general, 1, sharex=True)).tolist()
    measure = result.metric or "loss"
    sides = [target_of(point) for point in result.points]
    _draw_side(axes[0], result, sides, TARGET)
    axes[0].set_ylabel(f"target {measure}")
    if general:
        _draw_side(axes[1], result, [point.general for point in result.points], GENERAL)
        sign = -1 if result.more_is_better else 1
        base = result.point("base").general
        if base is not None:
            limit = base.mean.mean + sign * result.max_drop
            axes[1].axhline(limit, color=_GREY, linestyle=":", linewidth=1, label="limit")
        axes[1].set_ylabel(f"general {result.general_measure}")
    axes[-1].set_xlabel(
        "share of the fine-tune" if len(result.models) == 2 else "share of the way from the base"
    )
    handles, labels = axes[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    figure.suptitle(
        f"{result.verdict.headline}\nbars: {CONFIDENCE:.0%} intervals of the difference from the "
        "base",
        fontsize=10,
    )
    figure.savefig(path, dpi=150)


def _draw_side(axes: Axes, result: SearchResult, sides: Sequence[Side | None], colour: str) -> None:
    base = next(
        side for point, side in zip(result.points, sides, strict=True) if point.name == "base"
    )
    start = base.mean.mean if base is not None else 0.0
    found = [
        (point.share, point, side)
        for point, side in zip(result.points, sides, strict=True)
        if point.share is not None and side is not None
    ]
    shares = [share for share, _, _ in found]
    means = np.array([side.mean.mean for _, _, side in found])
    low, high = (
        np.array([getattr(side.difference, end) for _, _, side in found]) + start
        for end in ("low", "high")
    )
    axes.plot(shares, means, "o-", color=colour, markersize=4, linewidth=1.4, label="mixes")
    axes.fill_between(shares, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.axhline(start, color=_GREY, linewidth=0.8, label="base")
    for share, point, side in found:
        if point.name == result.verdict.chosen:
            axes.plot(
                share, side.mean.mean, "*", markersize=16, color=CHOSEN, label="chosen",
                zorder=5,
            )  # fmt: skip
        elif point.name in ("plain average", "lm-cocktail"):
            marker = "s" if point.name == "plain average" else "D"
            axes.plot(
                share, side.mean.mean, marker, markersize=7, mfc="white", mec="black",
                label=point.name, zorder=4,
            )  # fmt: skip
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)
