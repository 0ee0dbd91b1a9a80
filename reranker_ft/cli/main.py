"""The ``reranker-ft`` command: each body parses, calls one function and prints.

``reranker-ft calibrate`` and ``mine`` stand in files of their own beside this one.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import Any, cast

import click

from reranker_ft.cli.calibrate import calibrate
from reranker_ft.cli.group import OneLineErrors
from reranker_ft.cli.mine import mine
from reranker_ft.cli.options import (
    COUNT,
    json_option,
    kebab,
    length_options,
    overwrite_option,
    report,
    reranker_options,
)


@click.group(
    cls=OneLineErrors,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": kebab,
        "max_content_width": 100,
    },
)
@click.version_option(package_name="cocktail-mix")
def main() -> None:
    """Fine-tune, evaluate, mine for and score with cross-encoder rerankers.

    \b
    Example:
      reranker-ft check train.jsonl
      reranker-ft train --model_name_or_path BAAI/bge-reranker-base \\
        --train_data train.jsonl --eval_data dev.jsonl --output_dir out
      reranker-ft evaluate BAAI/bge-reranker-base out --data test.jsonl
    """


main.add_command(calibrate)
main.add_command(mine)


@main.command(
    add_help_option=False,
    context_settings={
        "ignore_unknown_options": True,
        "allow_extra_args": True,
        "token_normalize_func": None,
    },
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def train(context: click.Context, arguments: Sequence[str]) -> None:
    """Fine-tune a reranker on queries with positives and negatives.

    Takes the flags of transformers.TrainingArguments and those that --help lists.

    \b
    Example:
      reranker-ft train --model_name_or_path BAAI/bge-reranker-base \\
        --train_data train.jsonl --eval_data dev.jsonl --output_dir out \\
        --train_group_size 8 --per_device_train_batch_size 4 --learning_rate 6e-5
    For several processes:
      torchrun --nproc_per_node 2 -m reranker_ft.run ...the same flags...
    """
    if {"-h", "--help"} & set(arguments):
        click.echo(context.get_help() + "\n")
    from reranker_ft.run import main as run

    sys.exit(run(list(arguments)))


@main.command()
@click.argument("models", nargs=-1, required=True)
@click.option("--data", multiple=True, help="JSONL with query, pos, neg; repeatable.")
@click.option(
    "--benchmark",
    multiple=True,
    metavar="NAME",
    help="A benchmark of mteb (NanoBEIR), or one of its reranking or retrieval tasks; repeatable.",
)
@click.option("--max-queries", type=int, help="Use only the first queries of each data set.")
@click.option("--plot", help="Draw the results into this .png, .svg or .pdf.")
@click.option(
    "--metric",
    type=click.Choice(["mrr@10", "ndcg@10", "map", "recall@1", "recall@5", "recall@10"]),
    default="ndcg@10",
    show_default=True,
    help="The metric that --plot draws.",
)
@click.option(
    "--card", is_flag=True, help="Add NDCG@10 and MAP to the README.md of each MODEL's folder."
)
@overwrite_option
@json_option
@reranker_options
def evaluate(
    models: Sequence[str],
    data: Sequence[str],
    benchmark: Sequence[str],
    max_queries: int | None,
    plot: str | None,
    metric: str,
    card: bool,
    overwrite: bool,
    as_json: bool,
    reranker_options: dict[str, Any],
) -> None:
    """Compare MODELS on held-out queries.

    MRR@10, NDCG@10, MAP and Recall@k are computed as trec_eval computes them; ties count against
    the model. Every mean comes with its 95 % bootstrap interval, and every model after the first
    with its paired difference from the first.

    \b
    Example:
      reranker-ft evaluate BAAI/bge-reranker-base out --data target.jsonl --data general.jsonl \\
        --plot comparison.png
      reranker-ft evaluate BAAI/bge-reranker-base out --benchmark NanoBEIR
    """
    if not (data or benchmark):
        raise click.UsageError("Missing option '--data' or '--benchmark'.")
    if plot:
        from reranker_ft.data.files import refuse_existing
        from reranker_ft.evaluate.picture import check_picture_format, draw_comparison

        refuse_existing(plot, overwrite=overwrite)
        check_picture_format(plot)
    from reranker_ft.progress import tell_start

    tell_start(f"evaluating: {', '.join(models)} on {', '.join([*data, *benchmark])}")
    from reranker_ft.api import evaluate_rerankers
    from reranker_ft.cli.describe import describe_comparison

    found = evaluate_rerankers(
        models,
        data,
        benchmark=list(benchmark),
        max_queries=max_queries,
        card=card,
        reranker_options=reranker_options,
        progress=True,
    )
    if plot:
        draw_comparison(found.results, plot, metric=metric, overwrite=overwrite)
    report(found.to_dict(), describe_comparison(found.results), as_json)


@main.command()
@click.argument("model")
@click.option(
    "--data",
    "--input-file",
    "data",
    default="-",
    show_default=True,
    help="JSONL, or .tsv; - is standard input.",
)
@click.option(
    "--output",
    "--output-file",
    "output",
    default="-",
    show_default=True,
    help="JSONL; - is standard output.",
)
@click.option("--tsv", is_flag=True, help="Lines are query, tab, passage.")
@click.option("--normalize", is_flag=True, help="Map scores to (0, 1) by the sigmoid.")
@overwrite_option
@json_option
@reranker_options
def score(
    model: str,
    data: str,
    output: str,
    tsv: bool,
    normalize: bool,
    overwrite: bool,
    as_json: bool,
    reranker_options: dict[str, Any],
) -> None:
    """Score pairs with MODEL.

    Lines are read and written as a stream, in order. A line with "query" and "passage" gains
    "score"; a line with "query", "pos" and "neg" gains "pos_scores" and "neg_scores".

    \b
    Example:
      reranker-ft score out --data pairs.jsonl --output scores.jsonl
      printf 'what is a panda?\\tA bear from China.\\n' | reranker-ft score out --tsv
    """
    if output == "-":
        cast(io.TextIOWrapper, sys.stdout).reconfigure(encoding="utf-8")  # as JSON always is
    else:
        from reranker_ft.data.files import refuse_existing

        refuse_existing(output, overwrite=overwrite)
    from reranker_ft.progress import tell_start

    tell_start(f"scoring: {'standard input' if data == '-' else data} with {model}")
    from reranker_ft.score.records import score_file
    from reranker_ft.score.reranker import Reranker

    counted = score_file(
        Reranker(model, **reranker_options, normalize=normalize),
        data,
        output,
        tsv=tsv or data.endswith(".tsv"),
        overwrite=overwrite,
        progress=True,
    )
    if output != "-":
        text = f"{counted['pairs']:,} pairs on {counted['lines']:,} lines scored: {output}"
        report({**counted, "output": output}, text, as_json)


@main.command()
@click.argument("teacher")
@click.option("--input-file", required=True, help="JSONL with query, pos, neg.")
@click.option("--output-file", required=True, help="The same lines with pos_scores, neg_scores.")
@overwrite_option
@json_option
@reranker_options
def distil(
    teacher: str,
    input_file: str,
    output_file: str,
    overwrite: bool,
    as_json: bool,
    reranker_options: dict[str, Any],
) -> None:
    """Add the scores of the model TEACHER to training data.

    \b
    Example:
      reranker-ft distil BAAI/bge-reranker-large --input-file train.jsonl \\
        --output-file train_scored.jsonl
      reranker-ft train ... --train_data train_scored.jsonl --knowledge_distillation True
    """
    from reranker_ft.progress import tell_start

    tell_start(f"scoring: {input_file} with {teacher}")
    from reranker_ft.api import distil_scores

    found = distil_scores(
        teacher,
        input_file,
        output_file,
        overwrite=overwrite,
        reranker_options=reranker_options,
    )
    text = f"{found.pairs:,} passages of {found.lines:,} queries scored: {output_file}"
    report(found.to_dict(), text, as_json)


@main.command()
@click.argument("data", nargs=-1, required=True)
@click.option("--model-name-or-path", help="Count tokens with this model's tokenizer.")
@length_options
@click.option(
    "--train-group-size",
    type=COUNT,
    default=8,
    show_default=True,
    help="Passages per query in training.",
)
@json_option
def check(
    data: Sequence[str],
    model_name_or_path: str | None,
    max_length: int,
    query_max_length: int | None,
    passage_max_length: int | None,
    train_group_size: int,
    as_json: bool,
) -> None:
    """Report what is wrong or unusual in training DATA.

    DATA are files, or folders of files. The report has counts, token lengths and how much
    --max-length cuts, duplicates, positives among the negatives, and queries with too few
    negatives. Exit code 1 if training would refuse the data.

    \b
    Example:
      reranker-ft check train.jsonl --model-name-or-path BAAI/bge-reranker-base --max-length 256
    """
    if model_name_or_path is not None:
        from reranker_ft.progress import tell_start

        tell_start(f"checking: {', '.join(data)} with the tokenizer of {model_name_or_path}")
    from reranker_ft.cli.describe import describe_check
    from reranker_ft.train.check import check_data

    found = check_data(
        data,
        model_name_or_path=model_name_or_path,
        max_length=max_length,
        query_max_length=query_max_length,
        passage_max_length=passage_max_length,
        train_group_size=train_group_size,
        progress=True,
    )
    report(found.to_dict(), describe_check(found), as_json)
    sys.exit(0 if found.trainable else 1)
