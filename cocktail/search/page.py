"""The report as a page: one HTML file that needs no network, drawn by plotly."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from cocktail.search.changes import Change
from cocktail.search.curve import Point, Side
from cocktail.search.intervals import CONFIDENCE
from cocktail.search.result import SearchResult
from cocktail.search.tables import CHOSEN, GENERAL, TARGET, point_rows, shown, target_of

_GREY = "#888888"


def write_page(result: SearchResult, path: Path) -> None:
    """Write the page.

    Args:
        path: an HTML file, overwritten.
    """
    path.write_text(page(result), encoding="utf-8")


def page(result: SearchResult) -> str:
    """The page as text: the choice in plain words, the curve with its slider, and what changed."""
    curve = result.curve
    start = next((i for i, point in enumerate(curve) if point.name == result.verdict.chosen), 0)
    figure = _figure(result, curve, start)
    chart = figure.to_html(
        full_html=False,
        include_plotlyjs=True,
        div_id="curve",
        config={"responsive": True, "displaylogo": False, "displayModeBar": False},
    )
    verdict = result.verdict
    held_out = ""
    if verdict.held_out is not None:
        held_out = (
            f"<p>On held-out examples, the rule's loss differs from the base's by "
            f"{verdict.held_out}.</p>"
        )
    template = Template(files("cocktail.search").joinpath("page.html").read_text(encoding="utf-8"))
    return template.substitute(
        headline=escape(verdict.headline),
        reason=escape(f"{verdict.reason[:1].upper()}{verdict.reason[1:]}."),
        held_out=held_out,
        notes="".join(f"<p class=note>{escape(note)}</p>" for note in result.notes),
        weights=_weights(result),
        chart=chart,
        figures=_script_json([_figures(result, point) for point in curve]),
        start=start,
        changes=_changes(result.changes),
        table=_table(result),
        examples=len(result.places),
        general=len(result.general_places),
        seconds=f"{result.seconds:.0f}",
        confidence=f"{CONFIDENCE:.0%}",
    )


def _figure(result: SearchResult, curve: Sequence[Point], start: int) -> go.Figure:
    """Two charts, one below the other, with a marker on each and a slider that moves both."""
    sides: list[tuple[list[Side | None], str]] = [([target_of(point) for point in curve], TARGET)]
    titles = [f"Target: {result.metric or 'loss'}"]
    if result.general_measure is not None:
        sides.append(([point.general for point in curve], GENERAL))
        titles.append(f"General: {result.general_measure}")
    figure = make_subplots(
        rows=len(sides), cols=1, shared_xaxes=True, subplot_titles=titles, vertical_spacing=0.12
    )
    shares = [point.share for point in curve]
    markers: list[int] = []
    means: list[list[float]] = []
    for row, (measured, colour) in enumerate(sides, start=1):
        found = [side for side in measured if side is not None]
        centre = found[0].mean.mean
        means.append([side.mean.mean for side in found])
        for trace in _band(shares, found, centre, colour):
            figure.add_trace(trace, row=row, col=1)
        figure.add_trace(
            go.Scatter(
                x=shares, y=means[-1], mode="lines+markers", line={"color": colour, "width": 2},
                marker={"size": 6}, text=[point.name for point in curve],
                hovertemplate="%{text}: %{y:.4f}<extra></extra>",
            ),
            row=row, col=1,
        )  # fmt: skip
        figure.add_hline(y=centre, line={"color": _GREY, "width": 1, "dash": "dot"}, row=row, col=1)
        chosen = next((i for i, p in enumerate(curve) if p.name == result.verdict.chosen), None)
        if chosen is not None:
            figure.add_trace(
                go.Scatter(
                    x=[shares[chosen]], y=[means[-1][chosen]], mode="markers", hoverinfo="skip",
                    marker={"symbol": "star", "size": 16, "color": CHOSEN},
                ),
                row=row, col=1,
            )  # fmt: skip
        markers.append(len(figure.data))
        figure.add_trace(
            go.Scatter(
                x=[shares[start]], y=[means[-1][start]], mode="markers", hoverinfo="skip",
                marker={
                    "symbol": "circle-open", "size": 18, "color": CHOSEN, "line": {"width": 3},
                },
            ),
            row=row, col=1,
        )  # fmt: skip
    steps = [
        {
            "label": f"{share:.2f}",
            "method": "restyle",
            "args": [
                {"x": [[share]] * len(sides), "y": [[values[i]] for values in means]},
                markers,
            ],
        }
        for i, share in enumerate(shares)
    ]
    figure.update_layout(
        showlegend=False, height=230 + 220 * len(sides), dragmode=False,
        margin={"l": 50, "r": 16, "t": 40, "b": 10},
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)",
        sliders=[
            {
                "active": start, "steps": steps, "pad": {"t": 36, "b": 8}, "tickcolor": _GREY,
                "currentvalue": {
                    "prefix": "share of the fine-tune: " if len(result.models) == 2
                    else "share of the way: ",
                },
            }
        ],
    )  # fmt: skip
    figure.update_xaxes(range=[-0.03, 1.03], gridcolor="rgba(128,128,128,.25)", zeroline=False)
    figure.update_yaxes(gridcolor="rgba(128,128,128,.25)", zeroline=False, automargin=True)
    return figure


def _band(
    shares: Sequence[float | None], sides: Sequence[Side], centre: float, colour: str
) -> list[go.Scatter]:
    """The interval of the difference from the base, drawn around the base's own mean."""
    options: dict[str, Any] = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    low = [side.difference.low + centre for side in sides]
    high = [side.difference.high + centre for side in sides]
    return [
        go.Scatter(x=shares, y=low, **options),
        go.Scatter(
            x=shares, y=high, fill="tonexty", fillcolor=f"rgba({red},{green},{blue},.2)", **options
        ),
    ]


def _figures(result: SearchResult, point: Point) -> dict[str, Any]:
    """The figures under the charts for one position of the slider."""
    rows = []
    for name, side in (
        (f"target {result.metric}", point.metric),
        ("target loss", point.loss),
        (f"general {result.general_measure}", point.general),
    ):
        if side is not None:
            difference = "" if point.name == "base" else str(side.difference)
            rows.append([name, shown(side.mean), difference])
    return {
        "name": point.name,
        "chosen": point.name == result.verdict.chosen,
        "weights": [f"{weight:.3f}" for weight in point.weights],
        "rows": rows,
    }


def _weights(result: SearchResult) -> str:
    rows = "".join(
        f"<tr><td class=weight data-weight={i}>{weight:.3f}</td><td>{escape(model)}</td></tr>"
        for i, (model, weight) in enumerate(zip(result.models, result.weights, strict=True))
    )
    return f"<table id=weights>{rows}</table>"


def _changes(changes: Sequence[Change]) -> str:
    if not changes:
        return "<p>No ranking changed, or this kind of model does not rank.</p>"
    parts = []
    for side in ("target", "general"):
        for title, found in (
            ("for the better", [c for c in changes if c.side == side and c.gain > 0]),
            ("for the worse", [c for c in changes if c.side == side and c.gain < 0]),
        ):
            if found:
                parts.append(f"<h3>{side.capitalize()}, {title}</h3>")
                parts += [_change(change) for change in found]
    return "".join(parts)


def _change(change: Change) -> str:
    rows = "".join(
        f"<tr{' class=relevant' if move.relevant else ''}><td>{move.before} &rarr; {move.after}"
        f"</td><td>{escape(move.passage)}</td></tr>"
        for move in change.moves
        if move.before != move.after or move.relevant
    )
    return (
        f"<details><summary>{escape(change.query)}</summary><p class=place>{escape(change.place)}"
        f"</p><table><tr><th>rank</th><th>passage</th></tr>{rows}</table></details>"
    )


def _table(result: SearchResult) -> str:
    head, *rows = point_rows(result)
    cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        f"<tr{' class=chosen' if row[0] else ''}>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in row)
        + "</tr>"
        for row in rows
    )
    return f"<table><tr>{cells}</tr>{body}</table>"


def _script_json(value: Any) -> str:
    """JSON that is safe inside a script element."""
    return json.dumps(value).replace("<", "\\u003c")
