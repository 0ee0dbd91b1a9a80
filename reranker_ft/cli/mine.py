"""The ``reranker-ft mine`` command: parses, mines and prints."""

from __future__ import annotations

import functools
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
    candidate_pool: str | None,
    range_for_sampling: str,
    negative_number: int,
    fill_random: bool,
    seed: int,
    reranker: str | None,
    margin: float | None,
    overwrite: bool,
    as_json: bool,
    reranker_options: dict[str, Any],
    **embedder: Any,
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
    from reranker_ft.data.files import refuse_existing
    from reranker_ft.mine.mine import MiningOptions, mine_file, parse_ranks

    if margin is not None and reranker is None:
        raise click.UsageError(
            "--margin is given without --reranker - it compares the scores of one - add --reranker"
        )
    options = MiningOptions(
        ranks=parse_ranks(range_for_sampling),
        negatives=negative_number,
        fill_random=fill_random,
        margin=margin or 0.0,
        seed=seed,
    )
    refuse_existing(output_file, overwrite=overwrite)
    found = mine_file(
        input_file,
        output_file,
        options,
        _retriever(embedder, reranker_options),
        candidate_pool=candidate_pool,
        reranker=_guard(reranker, reranker_options),
        overwrite=overwrite,
        progress=True,
    )
    from reranker_ft.cli.describe import describe_mining

    report({**found.to_dict(), "output": output_file}, describe_mining(found, output_file), as_json)


def _guard(reranker: str | None, options: dict[str, Any]) -> Any:
    """Load the cross-encoder that guards against false negatives, if one is named."""
    from reranker_ft.score.reranker import Reranker

    return None if reranker is None else Reranker(reranker, **options)


def _retriever(embedder: dict[str, Any], shared: dict[str, Any]) -> Any:
    """Return what makes the retriever of a pool: BM25, or the encoder that the options name.

    Args:
        embedder: The options of ``mine`` that concern the encoder.
        shared: The options of the reranker, some of which apply to the encoder too.
    """
    from reranker_ft.mine.retrieve import BM25, EncoderSearch

    name = embedder["embedder_name_or_path"]
    if name is None:
        return functools.partial(BM25, progress=True)
    from reranker_ft.data.instructions import Instructions
    from reranker_ft.mine.bi_encoder import EncoderOptions, load_encoder

    encoder = load_encoder(
        name,
        EncoderOptions(
            pooling=embedder["pooling_method"],
            normalize=embedder["normalize_embeddings"],
            instructions=Instructions(
                query=embedder["query_instruction_for_retrieval"],
                query_format=embedder["query_instruction_format_for_retrieval"],
            ),
            query_max_length=embedder["embedder_query_max_length"],
            passage_max_length=embedder["embedder_passage_max_length"],
            device=(shared["devices"] or [None])[0],
            use_fp16=shared["use_fp16"],
            trust_remote_code=shared["trust_remote_code"],
            cache_dir=shared["cache_dir"],
        ),
    )
    return functools.partial(EncoderSearch, encoder, progress=True)
