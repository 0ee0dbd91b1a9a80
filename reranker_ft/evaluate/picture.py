"""Draw results; models and data are never read here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reranker_ft.data.files import new_file
from reranker_ft.errors import ArgumentError

if TYPE_CHECKING:
    from reranker_ft.evaluate.compare import Result

METRIC_TITLES = {"mrr@10": "MRR@10", "ndcg@10": "NDCG@10", "map": "MAP"}


def draw_comparison(
    results: Sequence[Result],
    path: str | Path,
    *,
    metric: str = "ndcg@10",
    overwrite: bool = False,
) -> None:
    """Draw a panel per data set: each model's mean, its interval, and its gain over the first.

    Args:
        results: What ``compare`` returns.
        path: The picture; its suffix says the format (.png, .svg, .pdf).
        metric: Which metric of the results.

    Raises:
        ArgumentError: The path exists and ``overwrite`` is false, the format is unknown, or the
            results lack the metric.
    """
    check_picture_format(path)
    if metric not in results[0].means:
        raise ArgumentError(
            f"metric {metric!r} was not measured - there are {', '.join(results[0].means)} - "
            "choose one of them"
        )
    sets = list(dict.fromkeys(result.data for result in results))
    models = len(results) // len(sets)
    figure = Figure(figsize=(2 + 4.5 * len(sets), 1.3 + 0.6 * models), layout="constrained")
    panels = figure.subplots(1, len(sets), sharey=True, squeeze=False)[0]
    for panel, name in zip(panels, sets, strict=True):
        _draw_panel(panel, [result for result in results if result.data == name], metric)
    with new_file(path, overwrite=overwrite) as temporary:
        figure.savefig(temporary, dpi=150, format=Path(path).suffix[1:])


def check_picture_format(path: str | Path) -> None:
    """Refuse a suffix that matplotlib cannot write.

    Raises:
        ArgumentError: The suffix names no format.
    """
    formats = Figure().canvas.get_supported_filetypes()
    if Path(path).suffix[1:] not in formats:
        raise ArgumentError(
            f"{path} ends in {Path(path).suffix or 'nothing'!r} - the suffix says the format - use "
            ".png, .svg or .pdf"
        )


def _draw_panel(panel: Axes, rows: Sequence[Result], metric: str) -> None:
    """Draw one data set: a row per model, the first on top."""
    for place, row in enumerate(rows):
        mean = row.means[metric]
        color = "tab:gray" if row.differences is None else "tab:blue"
        reach = None  # a single query has no interval
        if math.isfinite(mean.low):
            reach = [[mean.mean - mean.low], [mean.high - mean.mean]]
        panel.errorbar(mean.mean, place, xerr=reach, fmt="o", color=color, capsize=4)
        text = f"{mean.mean:.3f}"
        if row.differences is not None:
            gain = row.differences[metric]
            text += f"  ({gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}])"
        panel.annotate(
            text,
            (mean.mean, place),
            (0, 8),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            bbox={"color": "white", "pad": 0.5},
        )
    panel.axvline(rows[0].means[metric].mean, color="tab:gray", linewidth=0.8, linestyle=":")
    panel.set_yticks(range(len(rows)), [_short(row.model) for row in rows])
    panel.set_ylim(len(rows) - 0.5, -0.7)
    panel.margins(x=0.25)
    queries = len(rows[0].per_query[metric])
    panel.set_title(f"{_short(rows[0].data, parts=2)}, {queries} queries", fontsize=10)
    panel.set_xlabel(f"{METRIC_TITLES.get(metric, metric)}, 95 % interval (gain over the first)")
    panel.spines[["top", "right"]].set_visible(False)


def _short(name: str, parts: int = 1) -> str:
    """Return the end of a path or Hub id, which is what tells names apart."""
    return "/".join(Path(name).parts[-parts:])
