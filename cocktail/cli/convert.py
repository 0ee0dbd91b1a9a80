"""The command ``cocktail convert``."""

from __future__ import annotations

import click

from cocktail.cli.printing import json_option, report
from cocktail.errors import counted


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
    from cocktail.measure.converted import convert_model

    found = convert_model(model, output, pairs=pairs, overwrite=overwrite)
    rows = [f"{'before':>12} {'after':>12}"]
    shown = list(zip(found.before, found.after, strict=True))[:10]
    rows += [f"{a:12.6f} {b:12.6f}" for a, b in shown]
    pairs_scored = counted(found.pairs, "pair")
    rows.append(f"{pairs_scored}, largest difference {found.largest_difference:.1e}: {output}")
    report(found.to_dict(), "\n".join(rows), as_json, quiet=False)
