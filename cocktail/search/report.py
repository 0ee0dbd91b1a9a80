"""Results as text: the table on the terminal and the report folder."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from cocktail.errors import OutputError
from cocktail.search.objective import Measurement
from cocktail.search.result import Frontier, SearchResult
from cocktail.search.verdict import CONFIDENCE, Interval
from cocktail.system.temporary import folder_prefix, temporary_parts

REPORT_FILES = ("search.json", "report.md", "weights.png", "frontier.png")
_PARTS = "report"  # of whose name the temporary folder inside has some


def summary(result: SearchResult) -> str:
    """What the terminal shows: ingredients, candidates, verdict, frontier, weights, cost."""
    lines = [_columns(single_rows(result)), "", _columns(candidate_rows(result))]
    if result.frontier is not None:
        lines += ["", _columns(frontier_rows(result.frontier)), frontier_sentence(result.frontier)]
    lines += ["", *(f"note: {note}" for note in result.notes), f"{result.verdict.reason}."]
    lines += [
        f"{weight:8.4f}  {model}"
        for weight, model in zip(result.weights, result.models, strict=True)
    ]
    lines.append(cost_sentence(result))
    return "\n".join(lines)


def single_rows(result: SearchResult) -> list[list[str]]:
    """A header and one row for each ingredient by itself."""
    rows = [["model", "in-sample loss", *([result.metric] if result.metric else [])]]
    for i, single in enumerate(result.singles):
        name = single.name + (" (base)" if i == result.base else "")
        row = [name, f"{single.measured.loss:.4f}"]
        rows.append(row + ([_metric(single.measured)] if result.metric else []))
    return rows


def candidate_rows(result: SearchResult) -> list[list[str]]:
    """A header and one row for each candidate."""
    head = ["candidate", "weights", "in-sample loss", "held-out", "optimism"]
    if result.metric is not None:
        head += [result.metric, "held-out"]
    rows = [head]
    for candidate in result.candidates:
        mark = " *" if candidate.name == result.verdict.chosen else ""
        row = [
            candidate.name + mark,
            _weights(candidate.weights),
            f"{candidate.measured.loss:.4f}",
            "-" if candidate.held_out is None else f"{candidate.held_out.loss:.4f}",
            # + 0 makes a zero of what rounds to minus zero.
            "-" if candidate.optimism is None else f"{round(candidate.optimism, 4) + 0:+.4f}",
        ]
        if result.metric is not None:
            row += [_metric(candidate.measured), _metric(candidate.held_out)]
        rows.append(row)
    return rows


def frontier_rows(frontier: Frontier) -> list[list[str]]:
    """A header and one row for each point, by its value on the target."""
    near = frontier.neighbours
    rows = [["", "mix", "weights", f"target {frontier.measure}", f"retain {frontier.measure}"]]
    order = sorted(range(len(frontier.points)), key=lambda i: frontier.points[i].target.mean)
    for i in order:
        point = frontier.points[i]
        mark = "*" if i == frontier.chosen else "~" if i in near else ""
        rows.append(
            [
                mark,
                point.name,
                _weights(point.weights),
                _interval(point.target),
                _interval(point.retain),
            ]
        )
    return rows


def frontier_sentence(frontier: Frontier) -> str:
    """Whether the limit is kept."""
    if frontier.missed_by > 0:
        return (
            f"No mix keeps the retain {frontier.measure} within {frontier.limit:.4f}; the nearest "
            f"misses by {frontier.missed_by:.4f}."
        )
    return (
        f"Limit of the retain {frontier.measure}: {frontier.limit:.4f}; * is the chosen point, "
        "~ its neighbours."
    )


def cost_sentence(result: SearchResult) -> str:
    """What the search took."""
    state = "interrupted after" if result.interrupted else "took"
    dtype = "" if result.compute_dtype == "float32" else f" in {result.compute_dtype}"
    return (
        f"{state} {result.forwards:.1f} forward equivalents{dtype}, {result.mixes} mixes, "
        f"{result.seconds:.1f} s; {len(result.places)} examples, seed {result.seed}"
    )


def check_report_folder(
    folder: Path, models: Sequence[str] = (), output: Path | None = None
) -> None:
    """Refuse a place where a report cannot be written, or would overwrite something else.

    Args:
        models: the ingredients, of which folders are kept apart from the report.
        output: where the mix will be written; kept apart too.

    Raises:
        OutputError: the path is a file, a folder with other files in it, or cannot be written.
    """
    try:
        problem = _folder_problem(folder, models, output)
    except (OSError, ValueError) as error:  # too long, a null byte
        problem = f"is no path here ({error})"
    if problem is not None:
        raise OutputError(f"{folder} {problem} - name another")


def _folder_problem(folder: Path, models: Sequence[str], output: Path | None) -> str | None:
    if folder.exists() and not folder.is_dir():
        return "is a file - a report is a folder"
    leftovers = folder_prefix(folder / _PARTS)
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name not in REPORT_FILES and not path.name.startswith(leftovers):
            return f"holds {path.name!r} - a report goes into a new folder or over an earlier one"
    place = Path(os.path.realpath(folder))
    apart = [Path(model) for model in models if Path(model).is_dir()]
    for other in apart if output is None else [*apart, output]:
        kept = Path(os.path.realpath(other))
        if place.is_relative_to(kept) or kept.is_relative_to(place):
            return f"and {other} overlap - a report is kept apart from models"
    standing = next(parent for parent in (place, *place.parents) if parent.exists())
    if not (standing.is_dir() and os.access(standing, os.W_OK)):
        return f"cannot be made - {standing} is no folder that can be written to"
    return None


def write_report(result: SearchResult, folder: Path) -> list[str]:
    """Write ``search.json``, ``report.md`` and the pictures; without matplotlib the report says so.

    Each file is there as a whole, or as it was before; those of an earlier report go.

    Returns:
        Names of the files that were written.

    Raises:
        OutputError: the folder cannot be written, or holds something else.
    """
    check_report_folder(folder)
    try:
        with temporary_parts(folder / _PARTS) as parts:
            written = _write_files(result, parts)
            for name in written:
                (parts / name).replace(folder / name)
        for name in set(REPORT_FILES) - set(written):
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror})") from None
    return written


def _write_files(result: SearchResult, folder: Path) -> list[str]:
    pictures: list[str] = []
    if find_spec("matplotlib") is not None:
        from cocktail.search.pictures import draw_frontier, draw_weights  # noqa: PLC0415 - optional

        draw_weights(result, folder / "weights.png")
        pictures.append("weights.png")
        if result.frontier is not None:
            draw_frontier(result, folder / "frontier.png")
            pictures.append("frontier.png")
    text = json.dumps(result.to_dict(), indent=2) + "\n"
    (folder / "search.json").write_text(text, encoding="utf-8")
    text = _markdown(result, pictures)
    if not pictures:
        text += "\nWithout pictures: matplotlib draws them (`pip install matplotlib`).\n"
    (folder / "report.md").write_text(text, encoding="utf-8")
    return ["search.json", "report.md", *pictures]


def _markdown(result: SearchResult, pictures: Sequence[str]) -> str:
    parts = [
        "# Mixing weights",
        "\n".join(
            f"- `{model}`: **{weight:.4f}**"
            for weight, model in zip(result.weights, result.models, strict=True)
        ),
        f"Chosen: **{result.verdict.chosen}**. {result.verdict.reason}.",
        "## Candidates",
        "Every figure was measured on the mixed model. Held-out: each example at weights that were "
        "found without it.",
        _table(candidate_rows(result)),
    ]
    if "weights.png" in pictures:
        parts.append("![Weights and losses of the candidates](weights.png)")
    parts += ["## Ingredients", _table(single_rows(result))]
    if result.frontier is not None:
        parts += [
            "## Target against retain",
            f"Means, with the {CONFIDENCE:.0%} bootstrap intervals of their paired differences "
            "from the base. " + frontier_sentence(result.frontier),
            _table(frontier_rows(result.frontier)),
        ]
    if "frontier.png" in pictures:
        parts.append("![Target against retain](frontier.png)")
    if result.notes:
        parts += ["## Notes", "\n".join(f"- {note}" for note in result.notes)]
    parts += ["## Loss of every example", _table(_example_rows(result)), "## Cost"]
    parts.append(f"The search {cost_sentence(result)}.")
    return "\n\n".join(parts) + "\n"


def _example_rows(result: SearchResult) -> list[list[str]]:
    rows = [["example", *(candidate.name for candidate in result.candidates)]]
    for i, place in enumerate(result.places):
        losses = [f"{candidate.measured.losses[i]:.4f}" for candidate in result.candidates]
        rows.append([place, *losses])
    return rows


def _weights(weights: Sequence[float]) -> str:
    return " ".join(f"{weight:.3f}" for weight in weights)


def _metric(measured: Measurement | None) -> str:
    if measured is None or measured.metrics is None:
        return "-"
    return f"{measured.metrics.mean():.4f}"


def _interval(interval: Interval) -> str:
    return f"{interval.mean:.4f} [{interval.low:.4f}, {interval.high:.4f}]"


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines.insert(1, f"|{'---|' * len(rows[0])}")
    return "\n".join(lines)


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join(lines)
