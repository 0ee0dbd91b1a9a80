"""The command ``cocktail convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cocktail.cli.printing import json_option, report
from cocktail.errors import counted

# The default: enough to see that two models score alike.
_PAIRS = [
    ("what is a panda?", "The giant panda is a bear that lives in China."),
    ("what is a panda?", "Paris is the capital of France."),
    ("capital of France", "Paris is the capital of France."),
    ("who wrote Faust?", "Goethe worked on Faust for sixty years. " * 20),
]


@click.command()
@click.argument("model")
@click.option(
    "--to",
    "target",
    type=click.Choice(["sequence-classification"]),
    required=True,
    help="The form to write: a *ForSequenceClassification with one logit.",
)
@click.option("-o", "--output", required=True, help="The new folder.")
@click.option("--pairs", help="JSONL with query, pos, neg: compare the scores of these pairs.")
@click.option("--overwrite", is_flag=True, help="Replace an existing model at the output.")
@json_option
def convert(
    model: str, target: str, output: str, pairs: str | None, overwrite: bool, as_json: bool
) -> None:
    """Write a language-model reranker as a classifier with one logit.

    Its head is the output embedding's row of "yes" minus its row of "no", so that the scores are
    the same; they are compared before and after, and printed. The prompt is recorded in
    config.json: a server that takes only classifiers must be sent whole prompts.

    \b
    Example:
      cocktail convert ./qwen3-reranker --to sequence-classification -o ./classifier
    """
    from cocktail.checkpoint.resolve import resolve
    from cocktail.measure.tasks.examples import read_ranked
    from cocktail.measure.tasks.reranker import pair_scores, scoring_record
    from cocktail.write.convert import to_classifier

    compared = list(_PAIRS)
    if pairs is not None:
        examples = read_ranked(pairs, negatives=None, seed=0)
        compared = [(e.query, text) for e in examples for text in e.passages]
    checkpoint = resolve(model)
    record = scoring_record(checkpoint.folder)
    before = pair_scores(checkpoint.folder, compared)
    to_classifier(checkpoint, Path(output), record, overwrite=overwrite)
    after = pair_scores(Path(output), compared)
    largest = max(abs(a - b) for a, b in zip(before, after, strict=True))
    found: dict[str, Any] = {
        "output": output,
        "form": target,
        "pairs": len(compared),
        "before": before,
        "after": after,
        "largest_difference": largest,
    }
    rows = [f"{'before':>12} {'after':>12}"]
    rows += [f"{a:12.6f} {b:12.6f}" for a, b in list(zip(before, after, strict=True))[:10]]
    rows.append(f"{counted(len(compared), 'pair')}, largest difference {largest:.1e}: {output}")
    report(found, "\n".join(rows), as_json, quiet=False)
