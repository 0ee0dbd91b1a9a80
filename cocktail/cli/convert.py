"""The command ``cocktail convert``."""

from __future__ import annotations

from functools import partial
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
    type=click.Choice(["sequence-classification", "module-stack"]),
    required=True,
    help="The form to write: a *ForSequenceClassification with one logit, or the modules that "
    "sentence-transformers 6 stores.",
)
@click.option("-o", "--output", required=True, help="The new folder.")
@click.option("--pairs", help="JSONL with query, pos, neg: compare the scores of these pairs.")
@click.option("--overwrite", is_flag=True, help="Replace an existing model at the output.")
@json_option
def convert(
    model: str, target: str, output: str, pairs: str | None, overwrite: bool, as_json: bool
) -> None:
    """Write a reranker in another form that scores the same.

    A language model becomes a classifier whose head is the row of "yes" minus the row of "no" of
    its output embedding; its prompt is recorded in config.json, and a server that takes only
    classifiers must be sent whole prompts. A stack of modules becomes the classifier that does the
    same, and back. Scores are compared before and after, and printed.

    \b
    Example:
      cocktail convert ./qwen3-reranker --to sequence-classification -o ./classifier
      cocktail convert ./bge-reranker-base --to module-stack -o ./stack
    """
    from cocktail.checkpoint.detect import kind_of
    from cocktail.checkpoint.kinds import KINDS, STACK_RERANKER
    from cocktail.checkpoint.resolve import resolve
    from cocktail.measure.tasks.examples import read_ranked
    from cocktail.measure.tasks.reranker import add_logit_score, pair_scores, scoring_record
    from cocktail.write.convert import convert as write

    compared = list(_PAIRS)
    if pairs is not None:
        examples = read_ranked(pairs, negatives=None, seed=0)
        compared = [(e.query, text) for e in examples for text in e.passages]
    checkpoint = resolve(model)
    has_head = kind_of(checkpoint) in (KINDS["reranker"], STACK_RERANKER)
    record = None if has_head else scoring_record(checkpoint.folder)
    before = pair_scores(checkpoint.folder, compared)
    write(
        checkpoint,
        Path(output),
        target,
        record=record,
        finish=None if record is None else partial(add_logit_score, record=record),
        overwrite=overwrite,
    )
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
