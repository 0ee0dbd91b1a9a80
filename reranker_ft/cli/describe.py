"""Turn results into text for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # Text needs none of what makes the results.
    from reranker_ft.evaluate.calibrate import Calibration
    from reranker_ft.evaluate.compare import Result
    from reranker_ft.evaluate.metrics import Estimate
    from reranker_ft.mine.mine import MiningReport
    from reranker_ft.train.check import CheckReport


def describe_check(report: CheckReport) -> str:
    """List the counts, then what deserves a look, then the broken lines."""
    counts = {
        "files": report.files,
        "lines": report.lines,
        "examples": report.examples,
        "positives": report.positives,
        "negatives": report.negatives,
        "with teacher scores": report.with_scores,
    }
    lines = [f"{name:<22}{count:>12,}" for name, count in counts.items()]
    if report.tokens is not None:
        tokens = report.tokens
        lines += ["", f"{'tokens':<22}{'median':>12}{'90 %':>9}{'99 %':>9}{'longest':>9}"]
        lines += [
            f"{name:<22}{row.p50:>12,}{row.p90:>9,}{row.p99:>9,}{row.p100:>9,}"
            for name, row in (
                ("query", tokens.query_tokens),
                ("passage", tokens.passage_tokens),
                ("pair", tokens.pair_tokens),
            )
        ]
        by = " (the model's positions)" if tokens.max_length == tokens.positions else ""
        lines.append(
            f"max_length {tokens.max_length}{by} cuts {tokens.cut_pairs:,} of {tokens.pairs:,} "
            f"pairs, {tokens.lost_tokens:.1%} of the tokens"
        )
    lines += ["", *(_issues(report) or ["no issues found"])]
    lines += [f"  {problem}" for problem in report.shown_problems]
    return "\n".join(lines)


def _issues(report: CheckReport) -> list[str]:
    """Return a line for each kind of issue, with the first lines of the data that have it."""
    needed = report.train_group_size - 1
    counts = {
        "duplicate_lines": _counted(
            report.duplicate_lines, "line repeats an earlier line", "lines repeat an earlier line"
        ),
        "duplicate_queries": _counted(
            report.duplicate_queries,
            "line repeats the query of an earlier line",
            "lines repeat the query of an earlier line",
        ),
        "repeated_passages": _counted(
            report.repeated_passages,
            "passage is twice in the same list",
            "passages are twice in the same list",
        ),
        "positives_among_negatives": _counted(
            report.positives_among_negatives,
            "line has a passage in both pos and neg",
            "lines have a passage in both pos and neg",
        ),
        "blank_negatives": _counted(
            report.blank_negatives, "negative has no text", "negatives have no text"
        ),
        "too_few_negatives": _counted(
            report.too_few_negatives,
            f"line has fewer than {needed} negatives: training repeats those it has",
            f"lines have fewer than {needed} negatives: training repeats those they have",
        ),
        "without_negatives": _counted(
            report.without_negatives if needed else 0,
            "line has no negatives: training takes it only with --train_group_size 1 and "
            "--in_batch_negatives",
            "lines have no negatives: training takes them only with --train_group_size 1 and "
            "--in_batch_negatives",
        ),
    }
    issues = []
    for name, text in counts.items():
        if text:
            places = report.first_lines[name]
            more = ", ..." if getattr(report, name) > len(places) else ""
            issues.append(f"{text} ({', '.join(places)}{more})")
    if report.problems:
        issues.append(_counted(report.problems, "line breaks the format", "lines break the format"))
    elif not report.examples:
        issues.append("no examples: training needs at least one line with query, pos and neg")
    return issues


def _counted(count: int, one: str, several: str) -> str:
    """Return the count with its noun and verb in the right number; nothing for 0."""
    return "" if not count else f"{count:,} {one if count == 1 else several}"


def describe_mining(report: MiningReport, output: str) -> str:
    """Say in a few lines what was mined."""
    queries = _counted(report.queries, "query", "queries") or "0 queries"
    lines = [
        f"{queries}, {report.pool:,} distinct passages in the pool: {output}",
        f"{report.mined:,} negatives from the range of ranks, {report.filled:,} random ones",
        _counted(
            report.guarded,
            "candidate refused as a likely positive",
            "candidates refused as likely positives",
        ),
        _counted(
            report.short,
            "query has fewer negatives than asked for",
            "queries have fewer negatives than asked for",
        ),
    ]
    return "\n".join(filter(None, lines))


def describe_comparison(results: Sequence[Result]) -> str:
    """Lay out a block per data set, two lines per model: values, and their intervals below.

    A ``*`` marks a difference whose interval excludes 0.
    """
    width = max(16, *(len(result.model) for result in results)) + 2
    lines: list[str] = []
    for data in dict.fromkeys(result.data for result in results):
        rows = [result for result in results if result.data == data]
        queries = len(next(iter(rows[0].per_query.values())))
        lines += ["", f"{data}, {queries} queries, 95 % intervals", ""]
        names = [name if name == "map" else name.replace("recall", "R") for name in rows[0].means]
        lines.append(_row("", [name.upper() for name in names], width))
        for row in rows:
            lines += _estimates(row.model, row.means, width, signed=False)
            if row.differences is not None:
                lines += _estimates("  - the first", row.differences, width, signed=True)
    return "\n".join(lines[1:])


def describe_calibration(found: Calibration) -> str:
    """Say what was fitted, what it is worth, and where it stands."""
    sign = "-" if found.offset < 0 else "+"
    lines = [
        f"{found.model} on {found.data}: {found.queries:,} queries, {found.pairs:,} pairs, "
        f"{found.positives:,} of them relevant",
        f"probability = sigmoid({found.scale:.4g} * score {sign} {abs(found.offset):.4g})",
        "",
        _row("", ["before", f"after ({found.folds} folds)"], 24),
    ]
    for label, name in (("calibration error", "ece"), ("F1 at .5", "f1")):
        pair = [getattr(found.before, name), getattr(found.after, name)]
        lines.append(_row(label, [_number(value.mean, False) for value in pair], 24))
        intervals = [f"[{_number(v.low, False)}, {_number(v.high, False)}]" for v in pair]
        lines.append(_row("  95 % interval", intervals, 24))
    lines += ["", *(f"note: {note}" for note in found.notes)] if found.notes else [""]
    if found.output is None:
        lines.append("nothing was written: --output DIR makes a model that has this in its head")
    else:
        lines.append(f"{found.output}: the same model, with scale and offset in its head")
    return "\n".join(lines)


def _estimates(
    label: str, estimates: Mapping[str, Estimate], width: int, *, signed: bool
) -> list[str]:
    """Return two lines: the means, and their intervals below."""

    def mean(estimate: Estimate) -> str:
        clear = signed and not estimate.low <= 0 <= estimate.high
        return _number(estimate.mean, signed) + ("*" if clear else "")

    def interval(estimate: Estimate) -> str:
        return f"[{_number(estimate.low, signed)}, {_number(estimate.high, signed)}]"

    values = estimates.values()
    return [
        _row(label, [mean(value) for value in values], width),
        _row("", [interval(value) for value in values], width),
    ]


def _row(label: str, cells: Sequence[str], width: int) -> str:
    return (label.ljust(width) + "".join(cell.ljust(18) for cell in cells)).rstrip()


def _number(value: float, signed: bool) -> str:
    return f"{value:+.3f}" if signed else f"{value:.3f}"
