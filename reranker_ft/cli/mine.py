"""The ``reranker-ft mine`` command: parses, mines and prints."""

from __future__ import annotations

from typing import Any

import click

from reranker_ft.cli.options import json_option, overwrite_option, report, reranker_options


@click.command()
@click.option("--input-file", required=True, help="JSONL with query, pos.")
@click.option("--output-file", required=True, help="The same lines with mined neg.")
@click.option("--candidate-pool", help='JSONL with "text", or one passage per line.  [the input]')
@click.option(
    "--range-for-sampling",
    default="10-210",
    show_default=True,
    help="Ranks to draw from; 0 is the best, the end is excluded.",
)
@click.option("--negative-number", default=15, show_default=True, help="Negatives per query.")
@click.option(
    "--fill-random/--no-fill-random",
    default=True,
    show_default=True,
    help="Add random negatives where the ranks give too few.",
)
@click.option("--seed", default=0, show_default=True, help="Seed of the draw.")
@click.option("--reranker", help="Cross-encoder that guards against false negatives.")
@click.option(
    "--margin",
    type=float,
    help="With --reranker: how far below the query's positives a negative scores, in logits.  [0]",
)
@click.option("--embedder-name-or-path", help="Rank with this encoder.  [BM25]")
@click.option(
    "--pooling-method",
    type=click.Choice(["cls", "mean", "last_token"]),
    help="Pooling of the encoder.  [as stored with it]",
)
@click.option(
    "--normalize-embeddings",
    type=bool,
    default=True,
    show_default=True,
    help="Compare the encoder's embeddings by cosine.",
)
@click.option("--query-instruction-for-retrieval", help="The encoder's instruction for queries.")
@click.option(
    "--query-instruction-format-for-retrieval",
    default="{}{}",
    show_default=True,
    help="Its two {} take the instruction and the query.",
)
@click.option(
    "--embedder-query-max-length",
    default=512,
    show_default=True,
    help="Maximum tokens of a query for the encoder.",
)
@click.option(
    "--embedder-passage-max-length",
    default=512,
    show_default=True,
    help="Maximum tokens of a passage for the encoder.",
)
@click.option(
    "--use-gpu-for-searching",
    is_flag=False,
    flag_value="true",
    type=bool,
    help="Accepted and not needed: the search runs on the CPU, the encoder where --devices says.",
)
@click.option("--search-batch-size", type=int, help="Accepted and not needed.")
@overwrite_option
@json_option
@reranker_options
def mine(
    input_file: str,
    output_file: str,
    as_json: bool,
    use_gpu_for_searching: bool | None,
    search_batch_size: int | None,
    **options: Any,
) -> None:
    """Find hard negatives for training data.

    BM25, or an encoder, ranks the passages of the pool for each query, and negatives are drawn from
    a range of ranks. A positive of the same query is never drawn.

    \b
    Example:
      reranker-ft mine --input-file train.jsonl --output-file train_mined.jsonl \\
        --candidate-pool passages.jsonl --range-for-sampling 2-200 --negative-number 15 \\
        --reranker BAAI/bge-reranker-base --margin 1
    """
    if options["margin"] is not None and options["reranker"] is None:
        raise click.UsageError(
            "--margin is given without --reranker - it compares the scores of one - add --reranker"
        )
    models = [options[name] for name in ("embedder_name_or_path", "reranker") if options[name]]
    if models:
        from reranker_ft.progress import tell_start

        tell_start(f"mining: {input_file} with {' and '.join(models)}")
    from reranker_ft.api import mine_negatives
    from reranker_ft.cli.describe import describe_mining

    found = mine_negatives(input_file, output_file, **options)
    report(found.to_dict(), describe_mining(found, output_file), as_json)
