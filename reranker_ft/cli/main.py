"""The command line `reranker-ft`: each command parses, calls one function, prints.

`reranker-ft mine` stands in `mine_command.py`.
"""

from __future__ import annotations

import io
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import click

from reranker_ft.cli.mine import mine
from reranker_ft.cli.options import json_option, overwrite_option, report, reranker_options
from reranker_ft.errors import RerankerError

# What an optional dependency's absence means to someone who runs a command.
EXTRAS = {
    "accelerate": "train",
    "bm25s": "train",
    "peft": "train",
    "pytrec_eval": "train",
    "matplotlib": "plot",
}


class Terminated(KeyboardInterrupt):
    """SIGTERM: it ends a command as Ctrl-C does, so that no half-written output stays."""


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Inside, SIGTERM raises Terminated, unless the caller has other plans for it."""

    def terminate(*_: object) -> None:
        raise Terminated

    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class OneLineErrors(click.Group):
    """Ends on what the package refuses with one line on stderr and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _sigterm_raises():
                return super().invoke(ctx)
        except RerankerError as error:
            raise click.ClickException(str(error)) from error
        except ModuleNotFoundError as error:
            extra = EXTRAS.get((error.name or "").split(".")[0])
            if extra is None:
                raise
            raise click.ClickException(
                f"{error.name} is not installed - this command needs it - "
                f"pip install '.[{extra}]' in a clone of this repository"
            ) from error
        except BrokenPipeError:
            raise  # the reader of our output has seen enough: click ends without a word
        except OSError as error:
            raise click.ClickException(str(error)) from error
        except Terminated:
            click.echo("reranker-ft: terminated", err=True)
            ctx.exit(128 + signal.SIGTERM)
        except KeyboardInterrupt:
            click.echo("reranker-ft: interrupted", err=True)
            ctx.exit(130)


@click.group(
    cls=OneLineErrors,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda name: name.replace("-", "_"),
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

    Takes the flags of `python -m reranker_ft.run`: those of transformers.TrainingArguments, and
    those listed with --help.

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
@click.option(
    "--data", multiple=True, required=True, help="JSONL with query, pos, neg; repeatable."
)
@click.option("--max_queries", type=int, help="Only the first queries of each data set.")
@click.option("--plot", help="Draw the results into this .png, .svg or .pdf.")
@click.option(
    "--metric",
    type=click.Choice(["mrr@10", "ndcg@10", "map", "recall@1", "recall@5", "recall@10"]),
    default="ndcg@10",
    show_default=True,
    help="The metric that --plot draws.",
)
@overwrite_option
@json_option
@reranker_options
def evaluate(
    models: Sequence[str],
    data: Sequence[str],
    max_queries: int | None,
    plot: str | None,
    metric: str,
    overwrite: bool,
    as_json: bool,
    reranker_options: dict[str, Any],
) -> None:
    """Compare MODELS on held-out queries.

    MRR@10, NDCG@10, MAP and Recall@k are trec_eval's; ties count against the model. Every mean
    comes with its 95 % bootstrap interval, and every model after the first with the paired
    difference to the first.

    \b
    Example:
      reranker-ft evaluate BAAI/bge-reranker-base out --data target.jsonl --data general.jsonl \\
        --plot comparison.png
    """
    if plot:
        from reranker_ft.data.files import refuse_existing
        from reranker_ft.evaluate.picture import check_picture_format, draw_comparison

        refuse_existing(plot, overwrite=overwrite)
        check_picture_format(plot)
    from reranker_ft.cli.describe import describe_comparison
    from reranker_ft.evaluate.compare import compare

    results = compare(
        models,
        data,
        max_queries=max_queries,
        reranker_options=reranker_options,
        progress=sys.stderr.isatty(),
    )
    if plot:
        draw_comparison(results, plot, metric=metric, overwrite=overwrite)
    report(
        {"results": [result.to_dict() for result in results]}, describe_comparison(results), as_json
    )


@main.command()
@click.argument("model")
@click.option(
    "--data",
    "--input_file",
    "data",
    default="-",
    show_default=True,
    help="JSONL or .tsv; - is standard input.",
)
@click.option(
    "--output",
    "--output_file",
    "output",
    default="-",
    show_default=True,
    help="JSONL; - is standard output.",
)
@click.option("--tsv", is_flag=True, help="Standard input is query, tab, passage.")
@click.option("--normalize", is_flag=True, help="Scores in (0, 1), by the sigmoid.")
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

    Lines are read and written as a stream, order kept. A line with "query" and "passage" gains
    "score"; one with "query", "pos" and "neg" gains "pos_scores" and "neg_scores".

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
    from reranker_ft.score.records import score_file
    from reranker_ft.score.reranker import Reranker

    counted = score_file(
        Reranker(model, **reranker_options, normalize=normalize),
        data,
        output,
        tsv=tsv or data.endswith(".tsv"),
        overwrite=overwrite,
        progress=sys.stderr.isatty(),
    )
    if output != "-":
        text = f"{counted['pairs']} pairs on {counted['lines']} lines scored: {output}"
        report({**counted, "output": output}, text, as_json)


@main.command()
@click.argument("teacher")
@click.option("--input_file", required=True, help="JSONL with query, pos, neg.")
@click.option("--output_file", required=True, help="The same lines with pos_scores, neg_scores.")
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
    """Add the scores of a TEACHER to training data.

    \b
    Example:
      reranker-ft distil BAAI/bge-reranker-large --input_file train.jsonl \\
        --output_file train_scored.jsonl
      reranker-ft train ... --train_data train_scored.jsonl --knowledge_distillation True
    """
    from reranker_ft.data.files import refuse_existing
    from reranker_ft.score.distil import add_teacher_scores
    from reranker_ft.score.reranker import Reranker

    refuse_existing(output_file, overwrite=overwrite)
    counted = add_teacher_scores(
        Reranker(teacher, **reranker_options),
        input_file,
        output_file,
        overwrite=overwrite,
        progress=sys.stderr.isatty(),
    )
    text = f"{counted['pairs']} passages of {counted['lines']} queries scored: {output_file}"
    report({**counted, "output": output_file}, text, as_json)


@main.command()
@click.argument("data", nargs=-1, required=True)
@click.option("--model_name_or_path", help="Count tokens with this model's tokenizer.")
@click.option("--max_len", default=512, show_default=True, help="Most tokens of a pair.")
@click.option("--query_max_len", type=int, help="Most tokens of the query.")
@click.option("--passage_max_len", type=int, help="Most tokens of the passage.")
@click.option(
    "--train_group_size",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Passages a query.",
)
@json_option
def check(
    data: Sequence[str],
    model_name_or_path: str | None,
    max_len: int,
    query_max_len: int | None,
    passage_max_len: int | None,
    train_group_size: int,
    as_json: bool,
) -> None:
    """Report what training would stumble over in DATA.

    DATA are files, or folders of them. Reported are counts, token lengths and how much max_len
    cuts, duplicates, positives among the negatives, and too few negatives. Exit code 1 if training
    would refuse the data.

    \b
    Example:
      reranker-ft check train.jsonl --model_name_or_path BAAI/bge-reranker-base --max_len 256
    """
    from reranker_ft.cli.describe import describe_check
    from reranker_ft.model.load import load_tokenizer
    from reranker_ft.train.check import check_data, model_positions

    found = check_data(
        data,
        tokenizer=load_tokenizer(model_name_or_path) if model_name_or_path else None,
        positions=model_positions(model_name_or_path) if model_name_or_path else None,
        max_length=max_len,
        query_max_length=query_max_len,
        passage_max_length=passage_max_len,
        train_group_size=train_group_size,
        progress=sys.stderr.isatty(),
    )
    report(found.to_dict(), describe_check(found), as_json)
    sys.exit(0 if found.trainable else 1)
