"""Results as text: the table on the terminal, and the report folder."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from cocktail.errors import OutputError, counted
from cocktail.search.intervals import CONFIDENCE
from cocktail.search.result import SearchResult
from cocktail.search.tables import point_rows
from cocktail.system.temporary import folder_prefix, temporary_parts
from cocktail.write.card import CURVE_PICTURE

REPORT_FILES = ("search.json", "report.md", "report.html", CURVE_PICTURE)
_PARTS = "report"  # part of the name of the temporary folder inside


def summary(result: SearchResult) -> str:
    """What the terminal shows: the choice and its reason, notes, the curve, weights, and cost."""
    verdict = result.verdict
    lines = [verdict.headline, f"{verdict.reason}."]
    if verdict.held_out is not None:
        lines.append(held_out_sentence(result))
    lines += [f"note: {note}" for note in result.notes]
    lines += ["", _columns(point_rows(result)), ""]
    lines += [
        f"{weight:8.4f}  {model}"
        for weight, model in zip(result.weights, result.models, strict=True)
    ]
    lines.append(cost_sentence(result))
    if result.interrupted:
        weights = " ".join(f"{weight:.6g}" for weight in result.weights)
        models = shlex.join(result.models)
        lines.append(
            "to go on: run the same command again, which measures all of it; or write this mix: "
            f"cocktail mix {models} --weights {weights} --output DIR"
        )
    return "\n".join(lines)


def held_out_sentence(result: SearchResult) -> str:
    """How well the rule does on held-out examples."""
    return (
        f"On held-out examples, the rule's loss differs from the base's by "
        f"{result.verdict.held_out}: each is taken at the point that the other folds choose."
    )


def cost_sentence(result: SearchResult) -> str:
    """What the search cost."""
    state = "interrupted after" if result.interrupted else "took"
    dtype = "" if result.compute_dtype == "float32" else f" in {result.compute_dtype}"
    return (
        f"{state} {result.forwards:.1f} forward equivalents{dtype}, {result.mixes} mixes, "
        f"{result.seconds:.1f} s; {counted(len(result.places), 'example')}, seed {result.seed}"
    )


def check_report_folder(
    folder: Path, models: Sequence[str] = (), output: Path | None = None
) -> None:
    """Refuse a place where a report cannot be written, or would overwrite something else.

    Args:
        models: the ingredients; their folders are kept apart from the report.
        output: where the mix will be written; also kept apart.

    Raises:
        OutputError: the path is a file, a folder with other files in it, or cannot be written.
    """
    try:
        problem = _folder_problem(folder, models, output)
    except (OSError, ValueError) as error:  # too long, a null byte
        problem = f"is not a path here ({error})"
    if problem is not None:
        raise OutputError(f"{folder} {problem} - name another")


def _folder_problem(folder: Path, models: Sequence[str], output: Path | None) -> str | None:
    if folder.exists() and not folder.is_dir():
        return "is a file - a report must be a folder"
    leftovers = folder_prefix(folder / _PARTS)
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name not in REPORT_FILES and not path.name.startswith(leftovers):
            return (
                f"holds {path.name!r} - a report goes into a new folder or replaces an earlier one"
            )
    place = Path(os.path.realpath(folder))
    apart = [Path(model) for model in models if Path(model).is_dir()]
    for other in apart if output is None else [*apart, output]:
        kept = Path(os.path.realpath(other))
        if place.is_relative_to(kept) or kept.is_relative_to(place):
            return f"and {other} overlap - a report must be kept apart from models"
    standing = next(parent for parent in (place, *place.parents) if parent.exists())
    if not (standing.is_dir() and os.access(standing, os.W_OK)):
        return f"cannot be made - {standing} is not a writable folder"
    return None


def write_report(result: SearchResult, folder: Path) -> list[str]:
    """Write ``search.json`` and ``report.md``, the page (with plotly) and the picture (matplotlib).

    Each file is replaced as a whole or not at all; those of an earlier report are removed.

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
    written: list[str] = []
    if find_spec("matplotlib") is not None:
        from cocktail.search.pictures import draw_curve  # noqa: PLC0415 - optional

        draw_curve(result, folder / CURVE_PICTURE)
        written.append(CURVE_PICTURE)
    if find_spec("plotly") is not None:
        from cocktail.search.page import write_page  # noqa: PLC0415 - optional

        write_page(result, folder / "report.html")
        written.append("report.html")
    text = json.dumps(result.to_dict(), indent=2, allow_nan=False) + "\n"
    (folder / "search.json").write_text(text, encoding="utf-8")
    text = _markdown(result, CURVE_PICTURE in written)
    if len(written) < 2:
        text += (
            "\nThe picture or the page is missing: they need matplotlib and plotly "
            "(`pip install matplotlib plotly`).\n"
        )
    (folder / "report.md").write_text(text, encoding="utf-8")
    return ["search.json", "report.md", *written]


def _markdown(result: SearchResult, picture: bool) -> str:
    verdict = result.verdict
    parts = [
        "# Mixing weights",
        "\n".join(
            f"- `{model}`: **{weight:.4f}**"
            for weight, model in zip(result.weights, result.models, strict=True)
        ),
        f"**{verdict.headline}** {verdict.reason[:1].upper()}{verdict.reason[1:]}.",
    ]
    if verdict.held_out is not None:
        parts.append(held_out_sentence(result))
    parts += ["\n".join(f"- {note}" for note in result.notes)] if result.notes else []
    parts += [
        "## The curve",
        f"Every figure was measured on the mixed model, with {CONFIDENCE:.0%} bootstrap intervals "
        "over the examples; differences from the base are paired. * marks the choice.",
    ]
    if picture:
        parts.append(f"![Target and general measures along the mixes]({CURVE_PICTURE})")
    parts.append(_table(point_rows(result)))
    if result.changes:
        parts += ["## Rankings that changed most", _table(_change_rows(result))]
    parts += ["## Loss on every example", _table(_example_rows(result)), "## Cost"]
    parts.append(f"The search {cost_sentence(result)}.")
    return "\n\n".join(parts) + "\n"


def _change_rows(result: SearchResult) -> list[list[str]]:
    rows = [["side", "example", "query", "rank before", "rank after"]]
    for change in result.changes:
        first = next((move for move in change.moves if move.relevant), None)
        first = first or min(change.moves, key=lambda move: move.before)
        query = " ".join(change.query.split()).replace("|", "\\|")
        rows.append([change.side, change.place, query, str(first.before), str(first.after)])
    return rows


def _example_rows(result: SearchResult) -> list[list[str]]:
    shown = [result.point("base"), *(p for p in (result.chosen,) if p.name != "base")]
    rows = [["example", *(point.name for point in shown)]]
    for i, place in enumerate(result.places):
        rows.append([place, *(f"{point.loss.values[i]:.4f}" for point in shown)])
    return rows


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
