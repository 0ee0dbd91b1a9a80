"""The command ``cocktail convert``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cocktail.cli.printing import json_option, report
from cocktail.errors import counted

if TYPE_CHECKING:
    from cocktail.measure.converted import Form


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
    model: str, target: Form, output: str, pairs: str | None, overwrite: bool, as_json: bool
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
    from cocktail.measure.converted import convert_model

    found = convert_model(model, output, to=target, pairs=pairs, overwrite=overwrite)
    rows = [f"{'before':>12} {'after':>12}"]
    shown = list(zip(found.before, found.after, strict=True))[:10]
    rows += [f"{a:12.6f} {b:12.6f}" for a, b in shown]
    pairs_scored = counted(found.pairs, "pair")
    rows.append(f"{pairs_scored}, largest difference {found.largest_difference:.1e}: {output}")
    report(found.to_dict(), "\n".join(rows), as_json, quiet=False)
