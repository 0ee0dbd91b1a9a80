"""The ``reranker-ft calibrate`` command: parses, calibrates and prints."""

from __future__ import annotations

from typing import Any

import click

from reranker_ft.cli.options import json_option, overwrite_option, report, reranker_options


@click.command()
@click.argument("model")
@click.option("--data", required=True, help="JSONL with query, pos, neg; held out from training.")
@click.option("--output", "--output-dir", "output", help="Write the calibrated model there.")
@click.option("--max-queries", type=int, help="Use only the first queries.")
@click.option("--seed", default=0, show_default=True, help="Seed of folds and intervals.")
@overwrite_option
@json_option
@reranker_options
def calibrate(
    model: str,
    data: str,
    output: str | None,
    max_queries: int | None,
    seed: int,
    overwrite: bool,
    as_json: bool,
    reranker_options: dict[str, Any],
) -> None:
    """Make sigmoid(score) of MODEL a probability.

    A scale and an offset for the scores are fitted to labelled pairs; calibration error and F1 at
    a probability of .5 are measured before and after, each query by a fit to others. With --output
    a copy of the model has both in its head, so that every tool that loads it gives the new scores.
    Rankings stay as they are.

    \b
    Example:
      reranker-ft calibrate out --data dev.jsonl --output out-calibrated
    """
    from reranker_ft.progress import tell_start

    tell_start(f"calibrating: {model} on {data}")
    from reranker_ft.cli.describe import describe_calibration
    from reranker_ft.evaluate.calibrate import calibrate_reranker

    found = calibrate_reranker(
        model,
        data,
        output,
        overwrite=overwrite,
        max_queries=max_queries,
        seed=seed,
        reranker_options=reranker_options,
        progress=True,
    )
    report(found.to_dict(), describe_calibration(found), as_json)
