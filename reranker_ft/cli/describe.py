"""Results as text for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # Text needs none of what makes the results.
    from reranker_ft.evaluate.compare import Result
    from reranker_ft.evaluate.metrics import Estimate
    from reranker_ft.mine.mine import MiningReport
    from reranker_ft.train.check import CheckReport


def describe_check(report: CheckReport) -> str:
    """Counts one a line, then what is worth a look, then the broken lines."""
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
            f"max_len {tokens.max_length}{by} cuts {tokens.cut_pairs:,} of {tokens.pairs:,} pairs, "
            f"{tokens.lost_tokens:.1%} of the tokens"
        )
    needed = report.train_group_size - 1
    remarks = {
        "lines repeat an earlier line": report.duplicate_lines,
        "lines repeat an earlier query": report.duplicate_queries,
        "passages stand twice in one list": report.repeated_passages,
        "lines have a passage among the positives and the negatives": (
            report.positives_among_negatives
        ),
        f"lines have fewer than {needed} negatives, which training repeats": (
            report.too_few_negatives
        ),
        "lines have no negative; training takes them with --train_group_size 1 and "
        "--in_batch_negatives": report.without_negatives if needed else 0,
        "lines break the format": report.problems,
    }
    found = [f"{count:,} {remark}" for remark, count in remarks.items() if count]
    lines += ["", *(found or ["nothing to remark"])]
    lines += [f"  {problem}" for problem in report.shown_problems]
    return "\n".join(lines)


def describe_mining(report: MiningReport, output: str) -> str:
    """What was mined, in a few lines."""
    lines = [
        f"{report.queries:,} queries, {report.pool:,} distinct passages in the pool: {output}",
        f"{report.mined:,} negatives from the range of ranks, {report.filled:,} random ones",
    ]
    if report.guarded:
        lines.append(f"{report.guarded:,} candidates refused as likely positives")
    if report.short:
        lines.append(f"{report.short:,} queries have fewer negatives than asked for")
    return "\n".join(lines)


def describe_comparison(results: Sequence[Result]) -> str:
    """The results as text: a block a data set, two lines a row, the interval below the value.

    A `*` marks a difference whose interval leaves out 0.
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


def _estimates(
    label: str, estimates: Mapping[str, Estimate], width: int, *, signed: bool
) -> list[str]:
    """Two lines: the means, and their intervals below."""

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
